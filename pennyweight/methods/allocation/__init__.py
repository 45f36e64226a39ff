"""Who gets what: `allocate(table, problem) -> one option a group`; pure functions over a table of options."""

from pennyweight.methods.allocation.bisection import Bisection
from pennyweight.methods.allocation.dynamic_programming import DynamicProgramming
from pennyweight.methods.allocation.greedy import Greedy
from pennyweight.methods.allocation.integer_program import IntegerProgram
from pennyweight.methods.allocation.lagrangian import Frontier, Lagrangian, frontier
from pennyweight.methods.allocation.penalty import Penalty
from pennyweight.methods.allocation.uniform import Uniform

METHODS = (Bisection, DynamicProgramming, Greedy, IntegerProgram, Lagrangian, Penalty, Uniform)

__all__ = [
    "METHODS",
    "Bisection",
    "DynamicProgramming",
    "Frontier",
    "Greedy",
    "IntegerProgram",
    "Lagrangian",
    "Penalty",
    "Uniform",
    "frontier",
]
