"""Certification: from paired scores to a claim with a stated confidence, whenever the scoring stops."""

from pennyweight.methods.certification.certificate import certify
from pennyweight.methods.certification.clustered import by_document, clustered_bound
from pennyweight.methods.certification.fixed_sequence import FixedSequence
from pennyweight.methods.certification.planned_mixture import PlannedMixture, Wealth
from pennyweight.methods.certification.sequential import Decision, decide
from pennyweight.methods.certification.statement import state
from pennyweight.methods.certification.tail import tail_bound
from pennyweight.methods.certification.terms import choose_cap, choose_terms, needed_windows, smallest_margin

METHODS = (FixedSequence, PlannedMixture)

__all__ = [
    "METHODS",
    "Decision",
    "FixedSequence",
    "PlannedMixture",
    "Wealth",
    "by_document",
    "certify",
    "choose_cap",
    "choose_terms",
    "clustered_bound",
    "decide",
    "needed_windows",
    "smallest_margin",
    "state",
    "tail_bound",
]
