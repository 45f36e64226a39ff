"""The block types of GGUF, the files of llama.cpp: byte for byte what such a file holds."""

from pennyweight.formats.gguf.k_quants import KQuant
from pennyweight.formats.gguf.legacy import Legacy
from pennyweight.formats.gguf.ternary_blocks import TernaryBlocks

__all__ = ["KQuant", "Legacy", "TernaryBlocks"]
