"""GGUF files, written: container, families, tokenizer. `network/sources/gguf.py` reads them and shares nothing."""
