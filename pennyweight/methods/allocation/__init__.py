"""Who gets what: `allocate(table, problem) -> one option a group`; pure functions over a table of options."""

from pennyweight.methods.allocation.integer_program import IntegerProgram
from pennyweight.methods.allocation.uniform import Uniform

METHODS = (IntegerProgram, Uniform)

__all__ = ["METHODS", "IntegerProgram", "Uniform"]
