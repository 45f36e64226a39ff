"""compressed-tensors checkpoints: what transformers and vLLM load. `source.py` shares no code with `write.py`."""
