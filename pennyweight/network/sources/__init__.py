"""Where weights come from: directories, GGUF files, modules in memory; each a `Source` of named tensors."""
