"""One function a verb: arguments in, a result on stdout, an exit code out."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch

from pennyweight import catalogue
from pennyweight import report as pages
from pennyweight.budget import Budget
from pennyweight.cli import budgeting, tables
from pennyweight.cli.benching import bench
from pennyweight.cli.converting import convert, export
from pennyweight.cli.inspection import inspect
from pennyweight.cli.listing import listing
from pennyweight.cli.measure import measure, power
from pennyweight.cli.output import print_json, progress_of
from pennyweight.cli.packing import run_pack, run_unpack
from pennyweight.cli.rewriting import prove, rewrite
from pennyweight.cli.running import run
from pennyweight.cli.tails import tails
from pennyweight.cli.workers import pool_of
from pennyweight.errors import InvalidBudget, InvalidOutput, InvalidPlan, MissingFile
from pennyweight.flow import artifact
from pennyweight.flow.certifying.pair import Judging, certify_pair
from pennyweight.flow.certifying.record import certificate_schema
from pennyweight.flow.check import check as run_check
from pennyweight.flow.compress import compress as run_compress
from pennyweight.flow.load import load
from pennyweight.flow.make_plan import check_files, usual_dtype
from pennyweight.flow.rewrite import check_rewrites
from pennyweight.flow.rewrite import rewrite as run_rewrite
from pennyweight.flow.settings import Settings
from pennyweight.flow.steps import collect, make_plan
from pennyweight.flow.text import texts
from pennyweight.flow.verify import verify as run_verify
from pennyweight.latency import Latency, factor
from pennyweight.plan import Plan


def compress(arguments: Namespace) -> int:
    """Compress a model; exit 1 when no candidate could be certified."""
    plan = _read_plan(arguments.plan) if arguments.plan else None
    budgets = _budgets(arguments)
    if not budgets and plan is None:
        raise InvalidBudget(
            "no budget was given",
            expected="one of --lose, --fit, --bits, --memory, or a --plan",
            mend="--lose 2%",
            site="compress",
        )
    if not budgets:
        # A plan without a budget claims nothing; its own size is the limit it must keep.
        budgets = [Budget(metric="size", at_most=1e18, unit="bytes", confidence=arguments.confidence)]
    with pool_of(arguments) as workers:
        outcome = run_compress(
            arguments.model, arguments.out, budget=budgets, calibration=arguments.calibration,
            held_out=arguments.held_out, plan=plan, settings=_settings(arguments), study=arguments.study,
            allow_network=arguments.allow_network, progress=progress_of(arguments), workers=workers,
        )  # fmt: skip
    page = pages.write(outcome.out)
    timing = artifact.read_record(outcome.out, "timing.json")
    if arguments.json:
        print_json({**outcome.summary, "timing": timing, "artifact": str(outcome.out), "report": str(page)})
    else:
        tables.outcome(outcome, timing, page)
    return 0 if outcome.holds else 1


def certify(arguments: Namespace) -> int:
    """Certify another model against a reference; exit 1 when a limit could not be certified."""
    out = arguments.out or f"{Path(arguments.compressed).resolve().name}.certificate"
    judging = Judging(
        length=arguments.length, most=arguments.max_units, scope=arguments.scope, bound=arguments.bound,
        groups=arguments.groups, reserve=arguments.reserve, salt=arguments.salt, seed=arguments.seed,
        threads=arguments.threads or 0,
    )  # fmt: skip
    outcome = certify_pair(
        arguments.reference, arguments.compressed, out, budgets=_budgets(arguments), on=arguments.on,
        pilot=arguments.pilot, judging=judging, allow_network=arguments.allow_network, progress=progress_of(arguments),
    )  # fmt: skip
    page = pages.write(outcome.out)
    if arguments.json:
        print_json({**outcome.summary, "certificate": str(outcome.out), "report": str(page)})
    else:
        tables.certified(outcome, page)
    return 0 if outcome.holds else 1


def frontier(arguments: Namespace) -> int:
    """Draw the whole curve of sizes and losses."""
    return budgeting.frontier(arguments, _settings(arguments))


def predict(arguments: Namespace) -> int:
    """Say what compress would end with."""
    return budgeting.predict(arguments, _one_budget(arguments), _settings(arguments))


def check(arguments: Namespace) -> int:
    """Load files in their engine; exit 1 when it cannot, or computes something else."""
    found = run_check(
        arguments.path, engine=arguments.engine, python=arguments.python, text=arguments.on,
        windows=arguments.windows, length=arguments.length, allow_network=arguments.allow_network,
        progress=progress_of(arguments),
    )  # fmt: skip
    within = found.usual if arguments.within is None else arguments.within
    holds = found.holds(within)
    if arguments.json:
        numbers = {name: value if value != float("inf") else None for name, value in vars(found).items()}
        print_json({**numbers, "within": within, "holds": holds})
    else:
        tables.checked(found, within)
    return 0 if holds else 1


def plan(arguments: Namespace) -> int:
    """Make a plan from predictions."""
    budget = _one_budget(arguments)
    settings, progress = _settings(arguments), progress_of(arguments)
    contract = settings.target
    if arguments.output and (Path(arguments.output).is_dir() or not Path(arguments.output).absolute().parent.is_dir()):
        raise InvalidOutput(
            "the plan cannot be written here", expected="a file in a directory that is there",
            mend="choose another -o", site=arguments.output,
        )  # fmt: skip
    network = load(arguments.model, allow_network=arguments.allow_network)
    check_files(network, contract, settings.dtype or usual_dtype(network))
    words = texts(
        network, arguments.calibration, None, length=settings.length, count=settings.calibration_windows,
        selection=settings.selection_windows, seed=settings.seed,
    )  # fmt: skip
    model = network.source.fingerprint
    network, _ = run_rewrite(
        network, settings.rewrites, calibration=words.calibration, seed=settings.seed, progress=progress
    )
    with tempfile.TemporaryDirectory() as temporary:
        statistics = collect(
            network, words.calibration, work=arguments.work or temporary, seed=settings.seed, progress=progress
        )
        made = make_plan(
            network, statistics, budget, engine=settings.engine, formats=settings.formats, dtype=settings.dtype,
            method=settings.method,
            allocation=settings.allocation, pricing=settings.pricing, seed=settings.seed, latency=settings.latency,
            speed=settings.speed, memory=settings.memory, context=settings.context, progress=progress,
        )  # fmt: skip
    made = replace(made, model=model, rewrites=settings.rewrites, recovery=settings.recovery)
    text = made.to_toml()
    if arguments.output:
        Path(arguments.output).write_text(text, encoding="utf-8")
    if arguments.json:
        print_json({"bytes": made.bytes, "damage": made.damage, "steps": {k: v.label() for k, v in made.steps.items()}})
    elif arguments.output:
        print(made.explain())
        print(f"\nPlan written to {arguments.output}; edit it and pass it to compress --plan.")
    else:
        print(text)
    return 0


def verify(arguments: Namespace) -> int:
    """Check an artifact; a failure is an error, exit 2."""
    result = run_verify(arguments.artifact)
    certificate = result.certificate
    if arguments.json:
        print_json(
            {
                "files": result.files,
                "units": result.units,
                "holds": certificate.holds,
                "statement": certificate.statement,
            }
        )
    else:
        print(f"{result.files} files agree with their hashes; the certificate follows from its {result.units} units.")
        print(certificate.statement)
    return 0


def report(arguments: Namespace) -> int:
    """Write the page again."""
    page = pages.write(Path(arguments.artifact), Path(arguments.output) if arguments.output else None)
    if arguments.json:
        print_json({"report": str(page)})
    else:
        print(page)
    return 0


def schema(arguments: Namespace) -> int:
    """Print what certificate.json holds."""
    del arguments
    print_json(certificate_schema())
    return 0


VERBS = {
    "compress": compress, "certify": certify, "measure": measure, "power": power, "tails": tails, "plan": plan,
    "check": check, "frontier": frontier, "predict": predict, "explain": budgeting.explain, "inspect": inspect,
    "run": run, "bench": bench, "export": export, "convert": convert, "rewrite": rewrite, "prove": prove,
    "verify": verify, "pack": run_pack, "unpack": run_unpack, "report": report,
    "list": listing, "schema": schema,
}  # fmt: skip


def _one_budget(arguments: Namespace) -> Budget:
    budgets = _budgets(arguments)
    if len(budgets) != 1:
        raise InvalidBudget(
            f"{len(budgets)} budgets were given",
            expected="one of --lose, --fit, --bits, with or without --memory: a plan is made for one limit",
            mend="--lose 2%; compress takes several, and measures which one binds", site=arguments.verb,
        )  # fmt: skip
    return budgets[0]


def _budgets(arguments: Namespace) -> list[Budget]:
    confidence = arguments.confidence
    budgets = [Budget.lose(text, confidence=confidence) for text in arguments.lose or []]
    if getattr(arguments, "fit", None) is not None:
        budgets.append(Budget.fit(arguments.fit, confidence=confidence))
    if getattr(arguments, "bits", None) is not None:
        budgets.append(Budget(metric="bits", at_most=arguments.bits, unit="bits per weight", confidence=confidence))
    if not budgets and getattr(arguments, "memory", None) is not None:  # beside others it is one of the settings
        budgets.append(Budget.memory(arguments.memory, confidence=confidence))
    return budgets


def _settings(arguments: Namespace) -> Settings:
    given = {
        "engine": arguments.engine, "formats": arguments.formats, "length": arguments.length,
        "calibration_windows": arguments.calibration_windows,
        "selection_windows": arguments.selection_windows, "seed": arguments.seed, "allocation": arguments.allocation,
        "method": arguments.method, "dtype": arguments.dtype, "salt": getattr(arguments, "salt", ""),
        "scope": getattr(arguments, "scope", "corpus"), "bound": getattr(arguments, "bound", None),
        "groups": getattr(arguments, "groups", None), "reserve": getattr(arguments, "reserve", False),
        "certification_windows": getattr(arguments, "max_windows", None), "rewrites": arguments.rewrite,
        "recovery": arguments.recover, "search": getattr(arguments, "search", ""), "pricing": arguments.pricing,
        "activations": getattr(arguments, "activations", ""), "cache": getattr(arguments, "kv_cache", ""),
    }  # fmt: skip
    if arguments.latency is not None and arguments.speed is None:
        raise InvalidBudget(
            "times of an engine, and no speed that is wanted", expected="both, or neither", mend="--speed 2x",
            site="--latency",
        )  # fmt: skip
    if arguments.speed is not None:
        given |= {"speed": factor(arguments.speed), "latency": _latency(arguments)}
    if arguments.context is not None and arguments.memory is None:
        raise InvalidBudget(
            "a context, and no limit on the memory it is for", expected="both, or neither", mend="--memory 200MB",
            site="--context",
        )  # fmt: skip
    if arguments.memory is not None:
        given["memory"] = Budget.memory(arguments.memory).at_most
    if arguments.context is not None:
        given["context"] = arguments.context
    if arguments.threads:
        given["threads"] = arguments.threads
    check_rewrites(arguments.rewrite, calibrated=True)
    for spec in arguments.recover:
        catalogue.find(spec, "recovery")
    catalogue.find(arguments.method, "quantization")
    catalogue.find(arguments.allocation, "allocation")
    catalogue.find(arguments.pricing, "pricing")
    if given["search"]:
        catalogue.find(given["search"], "search")
    torch.set_num_threads(given.get("threads", torch.get_num_threads()))
    return Settings(**given)


def _latency(arguments: Namespace) -> Latency:
    if arguments.latency is None:
        raise InvalidBudget(
            "nothing is known of the engine's times", expected="a table of them: speed does not follow from bits",
            mend="--latency times.json, or leave --speed out", site="--speed",
        )  # fmt: skip
    return Latency.read(arguments.latency, machine=arguments.machine)


def _read_plan(path: str) -> Plan:
    try:
        return Plan.from_toml(Path(path).read_text(encoding="utf-8"), site=path)
    except InvalidPlan as error:
        error.site = error.site or path
        raise
    except FileNotFoundError as error:
        raise MissingFile(
            "there is no such plan", expected="a file that `pennyweight plan` wrote", mend="check the path", site=path
        ) from error
    except (UnicodeDecodeError, IsADirectoryError, NotADirectoryError) as error:
        raise InvalidPlan(
            "this is not a text file", expected="TOML in UTF-8", mend="make a new plan", site=path
        ) from error
