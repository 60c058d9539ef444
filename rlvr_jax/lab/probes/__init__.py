"""Probes, which measure in completions what training changed."""
