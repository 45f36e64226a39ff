"""The verbs `measure` and `power`: everything about two models, and what a claim would take before it is made."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec

from pennyweight import report as pages
from pennyweight.budget import Budget
from pennyweight.cli import profile_tables
from pennyweight.cli.output import print_json, progress_of
from pennyweight.errors import InvalidOutput
from pennyweight.flow.certifying.power import power as plan_power
from pennyweight.flow.load import load
from pennyweight.flow.profiling.profile import profile
from pennyweight.flow.profiling.values import Change, Profile


def measure(arguments: Namespace) -> int:
    """Compare two models on texts and tasks; nothing is claimed, so the exit code is always 0."""
    Budget.lose("1%", confidence=arguments.confidence)  # refuses a confidence outside (0, 1) before a model is opened
    page = Path(arguments.html) if arguments.html else None
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise InvalidOutput(
            "the page cannot be written here", expected="a file in a directory that is there",
            mend="choose another path", site=str(page),
        )  # fmt: skip
    found = profile(
        load(arguments.reference, allow_network=arguments.allow_network),
        load(arguments.compressed, allow_network=arguments.allow_network), arguments.on or (None,),
        groups=arguments.groups, most=arguments.max_units, confidence=arguments.confidence, length=arguments.length,
        seed=arguments.seed, progress=progress_of(arguments),
    )  # fmt: skip
    if page is not None:
        pages.write_profile(found, page)
    if arguments.json:
        print_json({**single(found), **msgspec.to_builtins(found)} | ({"page": str(page)} if page else {}))
    else:
        profile_tables.show_profile(found)
        if page is not None:
            sys.stdout.write(f"\npage  {page}\n")
    return 0


def power(arguments: Namespace) -> int:
    """Say what claims would take; exit 1 if no candidate can carry them."""
    budgets = [Budget.lose(text, confidence=arguments.confidence) for text in arguments.lose]
    reference = load(arguments.model, allow_network=arguments.allow_network)
    other = load(arguments.compressed, allow_network=arguments.allow_network) if arguments.compressed else None
    found = plan_power(
        reference, other, budgets, on=arguments.on, scope=arguments.scope, length=arguments.length,
        seed=arguments.seed, progress=progress_of(arguments),
    )  # fmt: skip
    if arguments.json:
        print_json(msgspec.to_builtins(found))
    else:
        profile_tables.show_power(found)
    return 0 if found.feasible else 1


def single(found: Profile) -> dict[str, Any]:
    """What is usually asked for, without a search through lists: the figures of the text, where there is one."""
    if len(found.texts) != 1:
        return {}
    text = found.texts[0]
    by_name: dict[str, Change] = {change.metric: change for change in text.metrics}
    loss = by_name["perplexity"]
    assert loss.before is not None
    assert loss.after is not None
    value: dict[str, Any] = {
        "text": text.source, "fingerprint": text.fingerprint, "windows": text.windows, "of": text.of,
        "length": text.length, "perplexity_before": math.exp(loss.before), "perplexity_after": math.exp(loss.after),
        "rise": math.expm1(loss.degradation), "kl": by_name["kl"].degradation,
        "agreement": 1 - by_name["disagreement"].degradation, "documents": text.documents,
    }  # fmt: skip
    if loss.standard_error is not None and loss.upper_approximate is not None:
        value["standard_error"] = loss.standard_error
        value["upper_approximate"] = math.expm1(loss.upper_approximate)
    return value
