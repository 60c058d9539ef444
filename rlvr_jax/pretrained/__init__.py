"""Models and tokenizers that others trained, in and out: Hugging Face folders, GGUF files, run directories."""
