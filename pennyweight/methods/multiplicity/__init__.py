"""Multiplicity: several claims, candidates, groups or openings of one text, and what their error levels add up to.

Every method answers `rejected(p_values [K], alpha) -> bool [K]`: which of K null hypotheses are rejected so that the
chance of rejecting any true one is at most alpha, however the p-values depend on each other.
"""

from pennyweight.methods.multiplicity.alpha_ledger import AlphaLedger
from pennyweight.methods.multiplicity.alpha_split import AlphaSplit
from pennyweight.methods.multiplicity.familywise import Familywise, p_from_e, p_from_log_e
from pennyweight.methods.multiplicity.fixed_sequence import FixedSequence
from pennyweight.methods.multiplicity.holm import Holm
from pennyweight.methods.multiplicity.intersection_union import IntersectionUnion
from pennyweight.methods.multiplicity.learn_then_test import LearnThenTest, hoeffding_bentkus, learn_path, smallest
from pennyweight.methods.multiplicity.worst_group import GroupBounds, WorstGroup, spread

METHODS = (AlphaLedger, AlphaSplit, FixedSequence, Holm, IntersectionUnion, LearnThenTest, WorstGroup)

__all__ = [
    "METHODS",
    "AlphaLedger",
    "AlphaSplit",
    "Familywise",
    "FixedSequence",
    "GroupBounds",
    "Holm",
    "IntersectionUnion",
    "LearnThenTest",
    "WorstGroup",
    "hoeffding_bentkus",
    "learn_path",
    "p_from_e",
    "p_from_log_e",
    "smallest",
    "spread",
]
