"""The page about one run, and its figures."""
