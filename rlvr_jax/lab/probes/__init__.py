"""Probes: what training changed, measured in completions."""
