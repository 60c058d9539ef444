"""Timings of sampling and updates, in this package and in other libraries that do the same work."""
