"""Timings of sampling and updates, and of other programs on the same work."""
