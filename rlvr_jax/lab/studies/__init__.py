"""Questions asked of several runs, and the pages and figures that people look at."""
