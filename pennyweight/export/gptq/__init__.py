"""GPTQ checkpoints: what GPTQModel and vLLM load. `source.py` shares no code with `write.py`."""
