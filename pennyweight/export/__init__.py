"""One file an engine's format: written tensor by tensor, read back bit for bit, and what each engine can load."""

from pennyweight.export.accounting import Accounting, Row
from pennyweight.export.compressed_tensors.layout import stored_bytes
from pennyweight.export.compressed_tensors.source import CompressedTensorsSource, is_compressed_tensors
from pennyweight.export.compressed_tensors.write import write
from pennyweight.export.engines import ENGINES, Engine, find, how_to_load
from pennyweight.export.files import FILES, Files, files_of
from pennyweight.export.uncompressed import dense_bytes, dense_dtype

__all__ = [
    "ENGINES",
    "FILES",
    "Accounting",
    "CompressedTensorsSource",
    "Engine",
    "Files",
    "Row",
    "dense_bytes",
    "dense_dtype",
    "files_of",
    "find",
    "how_to_load",
    "is_compressed_tensors",
    "stored_bytes",
    "write",
]
