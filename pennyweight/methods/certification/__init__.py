"""Certification: from paired scores to a claim with a stated confidence, whenever the scoring stops."""

from pennyweight.methods.certification.bootstrap import Bootstrap
from pennyweight.methods.certification.certificate import certify, combine, degradations, group_terms
from pennyweight.methods.certification.clopper_pearson import ClopperPearson
from pennyweight.methods.certification.clustered import ClusteredT, by_document, clustered_bound
from pennyweight.methods.certification.engine import AnytimeEngine, Engine
from pennyweight.methods.certification.hedged_capital import HedgedCapital
from pennyweight.methods.certification.hoeffding import Hoeffding
from pennyweight.methods.certification.maurer_pontil import MaurerPontil
from pennyweight.methods.certification.planned_mixture import PlannedMixture, Wealth
from pennyweight.methods.certification.predictable_plug_in import PredictablePlugIn
from pennyweight.methods.certification.sequential import Decision, decide
from pennyweight.methods.certification.statement import state
from pennyweight.methods.certification.tail import tail_bound
from pennyweight.methods.certification.tango import Tango
from pennyweight.methods.certification.terms import choose_cap, choose_terms, needed_windows, smallest_margin
from pennyweight.methods.certification.tost import TwoOneSidedTests

METHODS = (
    Bootstrap,
    ClopperPearson,
    ClusteredT,
    HedgedCapital,
    Hoeffding,
    MaurerPontil,
    PlannedMixture,
    PredictablePlugIn,
    Tango,
    TwoOneSidedTests,
)

__all__ = [
    "METHODS",
    "AnytimeEngine",
    "Bootstrap",
    "ClopperPearson",
    "ClusteredT",
    "Decision",
    "Engine",
    "HedgedCapital",
    "Hoeffding",
    "MaurerPontil",
    "PlannedMixture",
    "PredictablePlugIn",
    "Tango",
    "TwoOneSidedTests",
    "Wealth",
    "by_document",
    "certify",
    "choose_cap",
    "choose_terms",
    "clustered_bound",
    "combine",
    "decide",
    "degradations",
    "group_terms",
    "needed_windows",
    "smallest_margin",
    "state",
    "tail_bound",
]
