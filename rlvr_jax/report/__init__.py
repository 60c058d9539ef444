"""The report on one run, its figures, and functions that all HTML pages share."""
