"""Sampling, grading, saving and summarising completions."""
