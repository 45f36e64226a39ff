"""Who gets what, with measurements: `search(table, problem, trials, *, solve, seed)` yields ever better choices."""

from pennyweight.methods.search.evopress import EvoPress
from pennyweight.methods.search.quantune import Quantune
from pennyweight.methods.search.random_search import RandomSearch
from pennyweight.methods.search.simq_nas import SimQNAS
from pennyweight.methods.search.surrogate import Surrogate
from pennyweight.methods.search.thompson import Thompson

METHODS = (
    EvoPress,
    Quantune,
    RandomSearch,
    SimQNAS,
    Thompson,
)

__all__ = ["METHODS", "EvoPress", "Quantune", "RandomSearch", "SimQNAS", "Surrogate", "Thompson"]
