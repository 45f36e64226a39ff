"""Pennyweight makes a network smaller and says, with a stated confidence, how much worse it became.

    import pennyweight as pw

    outcome = pw.compress("model/", "small/", budget=pw.Budget.lose("2%"))
    print(outcome.certificate.statement)

Names are imported when they are first used: importing the package touches no device and reads no model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pennyweight.budget import Budget, Certificate, Claim, Measurement, Terms
    from pennyweight.corpus import Windows
    from pennyweight.flow.certifying.compare import certify_outputs, compare
    from pennyweight.flow.certifying.pair import Judging, certify_pair
    from pennyweight.flow.certifying.power import power
    from pennyweight.flow.collect import Collected
    from pennyweight.flow.compress import compress
    from pennyweight.flow.converting.convert import Converted, convert
    from pennyweight.flow.delivery import Outcome
    from pennyweight.flow.load import load
    from pennyweight.flow.measure import measure
    from pennyweight.flow.modules.compress import compress_module
    from pennyweight.flow.modules.result import CompressedModule, load_compressed, save_compressed
    from pennyweight.flow.packing.pack import Packed, pack
    from pennyweight.flow.packing.unpack import Unpacked, unpack
    from pennyweight.flow.predict import Prediction, predict
    from pennyweight.flow.profiling.profile import profile
    from pennyweight.flow.prove import Proof, prove
    from pennyweight.flow.rewrite import rewrite
    from pennyweight.flow.sampling.tails import tail_risk
    from pennyweight.flow.search.frontier import Frontier, frontier
    from pennyweight.flow.settings import Settings
    from pennyweight.flow.steps import apply, certify, collect, held_out, make_plan, sample
    from pennyweight.flow.verify import verify
    from pennyweight.flow.working.pool import Pool
    from pennyweight.formats import Compressed, Dense, Grid
    from pennyweight.latency import Latency
    from pennyweight.network.finding.trace import network_of
    from pennyweight.network.network import Edge, Network, Site
    from pennyweight.plan import Option, Plan, Stage, Step
    from pennyweight.statistics import Statistics
    from pennyweight.task import Task, read_task

_PLACES = {
    "pennyweight.budget": ("Budget", "Certificate", "Claim", "Measurement", "Terms"),
    "pennyweight.corpus": ("Windows",),
    "pennyweight.flow.certifying.pair": ("Judging", "certify_pair"),
    "pennyweight.flow.collect": ("Collected",),
    "pennyweight.flow.certifying.compare": ("certify_outputs", "compare"),
    "pennyweight.flow.compress": ("compress",),
    "pennyweight.flow.settings": ("Settings",),
    "pennyweight.flow.converting.convert": ("Converted", "convert"),
    "pennyweight.flow.delivery": ("Outcome",),
    "pennyweight.flow.load": ("load",),
    "pennyweight.flow.measure": ("measure",),
    "pennyweight.flow.certifying.power": ("power",),
    "pennyweight.flow.modules.compress": ("compress_module",),
    "pennyweight.flow.modules.result": ("CompressedModule", "load_compressed", "save_compressed"),
    "pennyweight.flow.packing.pack": ("Packed", "pack"),
    "pennyweight.flow.packing.unpack": ("Unpacked", "unpack"),
    "pennyweight.flow.predict": ("Prediction", "predict"),
    "pennyweight.flow.profiling.profile": ("profile",),
    "pennyweight.flow.search.frontier": ("Frontier", "frontier"),
    "pennyweight.latency": ("Latency",),
    "pennyweight.flow.working.pool": ("Pool",),
    "pennyweight.flow.prove": ("Proof", "prove"),
    "pennyweight.flow.rewrite": ("rewrite",),
    "pennyweight.flow.steps": ("apply", "certify", "collect", "held_out", "make_plan", "sample"),
    "pennyweight.flow.sampling.tails": ("tail_risk",),
    "pennyweight.flow.verify": ("verify",),
    "pennyweight.formats": ("Compressed", "Dense", "Grid"),
    "pennyweight.network.network": ("Edge", "Network", "Site"),
    "pennyweight.network.finding.trace": ("network_of",),
    "pennyweight.plan": ("Option", "Plan", "Stage", "Step"),
    "pennyweight.statistics": ("Statistics",),
    "pennyweight.task": ("Task", "read_task"),
}
_WHERE = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "Budget", "Certificate", "Claim", "Collected", "Compressed", "CompressedModule", "Converted", "Dense", "Edge",
    "Frontier", "Grid", "Judging", "Latency", "Measurement", "Network", "Option", "Outcome", "Packed", "Plan", "Pool",
    "Prediction", "Proof", "Settings", "Site", "Stage", "Statistics", "Step", "Task", "Terms", "Unpacked", "Windows",
    "apply", "certify", "certify_outputs", "certify_pair", "collect", "compare", "compress", "compress_module",
    "convert", "frontier", "held_out", "load", "load_compressed", "make_plan", "measure", "network_of", "pack", "power",
    "predict", "profile", "prove", "read_task", "rewrite", "sample", "save_compressed", "tail_risk",
    "unpack", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
