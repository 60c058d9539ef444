"""Finds the answer in a completion and decides whether it is right."""
