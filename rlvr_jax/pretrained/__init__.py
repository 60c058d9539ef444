"""Loads models and tokenizers from Hugging Face folders, GGUF files and run directories, and exports them."""
