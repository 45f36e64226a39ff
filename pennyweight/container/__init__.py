"""Lossless storage: files cut into tensors, tensors into fields, fields into chunks that are coded one by one."""

from pennyweight.container.chunks import Coded, choose, chunk_size, encode, entropy
from pennyweight.container.coders import require
from pennyweight.container.cutting import Cut, cut
from pennyweight.container.index import MAGIC, Index, PackedFile, Segment, footer, record, safe, whole
from pennyweight.container.reading import Container, Piece

__all__ = [
    "MAGIC",
    "Coded",
    "Container",
    "Cut",
    "Index",
    "PackedFile",
    "Piece",
    "Segment",
    "choose",
    "chunk_size",
    "cut",
    "encode",
    "entropy",
    "footer",
    "record",
    "require",
    "safe",
    "whole",
]
