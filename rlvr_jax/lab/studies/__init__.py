"""Studies, which answer a question by comparing several runs, and their pages and figures."""
