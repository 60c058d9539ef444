"""The graders, by name: modules whose `same` compares texts, and asks `equal` where that takes a child process.

`same(given, answer, leaf)` has `equal` for its leaf in a child process alone: there its libraries may be loaded, by
`load`. PACKAGE is the one whose version a report names, NEEDS what has to be installed, MISSING what is said where it
is not, and MAX_REFERENCE the most characters of an `answer`.
"""

import collections

from rlvr_jax.grading import gym, mathematics, original

GRADERS = {"math": mathematics, "original": original}  # what --grader names
OWN = {"gym": gym}  # verifiers that problems bring along: a flag cannot name them
ALL = collections.ChainMap(GRADERS, OWN)
