"""The graders, by name: modules whose `same` compares two answers.

`same(given, answer, leaf)` calls `leaf(given, answer)` where texts alone do not decide. In a child process, and only
there, `leaf` is the module's `equal`, whose libraries `load` imports. PACKAGE is the one whose version a report names,
NEEDS what has to be installed, MISSING the error if it is not, and MAX_REFERENCE the most characters of an `answer`.
"""

import collections

from rlvr_jax.grading import gym, mathematics, original

GRADERS = {"math": mathematics, "original": original}  # the choices of --grader
OWN = {"gym": gym}  # verifiers that problems bring along, which no flag names
ALL = collections.ChainMap(GRADERS, OWN)
