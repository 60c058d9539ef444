"""The graders, by name."""

from typing import Callable, NamedTuple, Optional

from rlvr_jax.grading import mathematics, original


class Grader(NamedTuple):
    """When two answers are equal: what the texts tell at once, and what decides the cases that they leave open."""

    same: Callable[..., Optional[bool]]
    algebra: Callable[[str, str], bool]  # in a child process alone
    package: str  # whose version a report names


GRADERS = {"math": Grader(mathematics.same, mathematics.equal, "math-verify"),
           "original": Grader(original.same, original.released_reward, "sympy")}
