"""The page about one run and its figures; `scripts.report` draws it."""
