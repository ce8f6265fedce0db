"""Model files: GGUF and Hugging Face folders as checkpoints, tensor types and their float32 values."""
