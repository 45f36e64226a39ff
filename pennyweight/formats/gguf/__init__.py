"""The block types of GGUF, the files of llama.cpp: byte for byte what such a file holds."""

from pennyweight.formats.gguf.legacy import Legacy

__all__ = ["Legacy"]
