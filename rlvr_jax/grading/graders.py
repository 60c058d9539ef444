"""The graders, by name: modules whose `same` compares texts, and asks `equal` where that takes computer algebra.

`same(given, answer, leaf)` has `equal` for its leaf in a child process alone: there its libraries may be loaded.
"""

from rlvr_jax.grading import mathematics, original

GRADERS = {"math": mathematics, "original": original}
