"""Training runs compiled ahead of time for TPUs and GPUs: whether they fit, and how fast they could be."""
