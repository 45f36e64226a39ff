"""ONNX programs with packed weights beside them: traced, laid out, written, read back."""
