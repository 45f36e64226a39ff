"""The verbs `frontier`, `predict` and `explain`: what sizes cost, what a run would end with, why a plan is as it is."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from pennyweight import report as pages
from pennyweight.budget import Budget
from pennyweight.cli import budgeting_tables as tables
from pennyweight.cli.output import print_json, progress_of
from pennyweight.cli.workers import pool_of
from pennyweight.errors import MissingFile
from pennyweight.flow import artifact
from pennyweight.flow.predict import predict as run_predict
from pennyweight.flow.search.frontier import frontier as run_frontier
from pennyweight.flow.settings import Settings


def frontier(arguments: Namespace, settings: Settings) -> int:
    """Measure plans of many sizes and draw the curve."""
    with pool_of(arguments) as workers:
        found = run_frontier(
            arguments.model, arguments.out, points=arguments.points, tokens=arguments.tokens,
            calibration=arguments.calibration, settings=settings, study=arguments.study,
            allow_network=arguments.allow_network, progress=progress_of(arguments), workers=workers,
        )  # fmt: skip
    page = pages.write_frontier(found, found.out / "frontier.html")
    if arguments.json:
        print_json({**asdict(found), "out": str(found.out), "page": str(page)})
    else:
        tables.frontier(found, page)
    return 0


def predict(arguments: Namespace, budget: Budget, settings: Settings) -> int:
    """Say what a run would end with."""
    found = run_predict(
        arguments.model, budget, calibration=arguments.calibration, settings=settings,
        allow_network=arguments.allow_network, progress=progress_of(arguments),
    )  # fmt: skip
    if arguments.output:
        Path(arguments.output).write_text(found.plan.to_toml(), encoding="utf-8")
    if arguments.json:
        rest = {name: value for name, value in vars(found).items() if name != "plan"}
        print_json({**rest, "steps": {name: step.label() for name, step in found.plan.steps.items()}})
    else:
        tables.predicted(found, budget)
    return 0


def explain(arguments: Namespace) -> int:
    """Say why every site of an artifact got what it got."""
    directory = Path(arguments.artifact)
    if not (directory / artifact.FOLDER / "explanation.json").is_file():
        raise MissingFile(
            "nothing is known of the choices behind it",
            expected="an artifact whose plan pennyweight compress made itself",
            mend="compress without --plan", site=str(directory),
        )  # fmt: skip
    found = artifact.read_record(directory, "explanation.json")
    if arguments.json:
        print_json(found)
    else:
        tables.explained(found)
    return 0
