"""The page about one run, its figures, and what all HTML pages share."""
