"""The tables of graders: name -> module whose `same` compares two answers.

`same(given, answer, leaf)` calls `leaf(given, answer)` where the texts alone do not decide. In a child process `leaf`
is the module's `equal`; elsewhere it raises an exception. `load` imports the libraries that `equal` uses. NEEDS are the
packages that must be installed, MISSING the error if one is not, PACKAGE the one whose version is reported, and
MAX_REFERENCE the most characters of `answer`."""

import collections

from rlvr_jax.grading import gym, mathematics, original

GRADERS = {"math": mathematics, "original": original}  # the choices of --grader
OWN = {"gym": gym}  # verifiers that come with problems; --grader cannot choose them
ALL = collections.ChainMap(GRADERS, OWN)
