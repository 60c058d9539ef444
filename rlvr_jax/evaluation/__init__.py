"""Completions sampled, graded, kept and counted."""
