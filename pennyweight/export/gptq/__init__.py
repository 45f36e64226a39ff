"""GPTQ checkpoints of other toolkits, read."""
