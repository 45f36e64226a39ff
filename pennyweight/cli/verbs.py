"""One function a verb: arguments in, a result on stdout, an exit code out."""

from __future__ import annotations

import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pennyweight import catalogue
from pennyweight import report as pages
from pennyweight.budget import Budget
from pennyweight.cli import tables
from pennyweight.corpus import cut, describe_source, read_documents, require_windows
from pennyweight.errors import InvalidBudget, InvalidMeasurement, InvalidOutput, InvalidPlan, MissingFile
from pennyweight.export.engines import ENGINES, find
from pennyweight.flow import artifact
from pennyweight.flow.compress import Settings
from pennyweight.flow.compress import compress as run_compress
from pennyweight.flow.load import load
from pennyweight.flow.make_plan import check_dtype, usual_dtype
from pennyweight.flow.measure import Scorer
from pennyweight.flow.options import menu
from pennyweight.flow.progress import Progress
from pennyweight.flow.steps import collect, make_plan
from pennyweight.flow.text import check_vocabulary, texts
from pennyweight.flow.verify import verify as run_verify
from pennyweight.formats import FORMATS
from pennyweight.methods.certification import by_document, clustered_bound
from pennyweight.network.tokenizer import load_tokenizer, separator_id
from pennyweight.numerics.random import permutation
from pennyweight.plan import Plan


def compress(arguments: Namespace) -> int:
    """Compress a model; exit 1 when no candidate could be certified."""
    plan = _read_plan(arguments.plan) if arguments.plan else None
    budget = _budget(arguments)
    if budget is None and plan is None:
        raise InvalidBudget(
            "no budget was given",
            expected="one of --lose, --fit, --bits, or a --plan",
            mend="--lose 2%",
            site="compress",
        )
    if budget is None:
        # A plan without a budget claims nothing; its own size is the limit it must keep.
        budget = Budget(metric="size", at_most=1e18, unit="bytes", confidence=arguments.confidence)
    outcome = run_compress(
        arguments.model, arguments.out, budget=budget, calibration=arguments.calibration, held_out=arguments.held_out,
        plan=plan, settings=_settings(arguments), allow_network=arguments.allow_network, progress=_progress(arguments),
    )  # fmt: skip
    page = pages.write(outcome.out)
    timing = artifact.read_record(outcome.out, "timing.json")
    if arguments.json:
        _json({**outcome.summary, "timing": timing, "artifact": str(outcome.out), "report": str(page)})
    else:
        tables.outcome(outcome, timing, page)
    return 0 if outcome.holds else 1


def plan(arguments: Namespace) -> int:
    """Make a plan from predictions."""
    budget = _budget(arguments)
    assert budget is not None
    settings, progress = _settings(arguments), _progress(arguments)
    contract = find(settings.engine)
    if arguments.output and (Path(arguments.output).is_dir() or not Path(arguments.output).absolute().parent.is_dir()):
        raise InvalidOutput(
            "the plan cannot be written here", expected="a file in a directory that is there",
            mend="choose another -o", site=arguments.output,
        )  # fmt: skip
    network = load(arguments.model, allow_network=arguments.allow_network)
    check_dtype(settings.dtype or usual_dtype(network), contract)
    words = texts(
        network, arguments.calibration, None, length=settings.length, count=settings.calibration_windows,
        selection=settings.selection_windows, seed=settings.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        statistics = collect(
            network, words.calibration, work=arguments.work or temporary, seed=settings.seed, progress=progress
        )
        made = make_plan(
            network, statistics, budget, engine=settings.engine, dtype=settings.dtype, method=settings.method,
            allocation=settings.allocation, seed=settings.seed, progress=progress,
        )  # fmt: skip
    text = made.to_toml()
    if arguments.output:
        Path(arguments.output).write_text(text, encoding="utf-8")
    if arguments.json:
        _json({"bytes": made.bytes, "damage": made.damage, "steps": {k: v.label() for k, v in made.steps.items()}})
    elif arguments.output:
        print(made.explain())
        print(f"\nPlan written to {arguments.output}; edit it and pass it to compress --plan.")
    else:
        print(text)
    return 0


def inspect(arguments: Namespace) -> int:
    """Show what a network is made of."""
    network = load(arguments.model, allow_network=arguments.allow_network)
    rows = []
    for site in network.sites:
        takes = {
            engine.name: sorted(
                {g.label() for g in menu([site.shape[1]], "float16") if not engine.refuses(site, g, network)}
            )
            for engine in ENGINES
        }
        rows.append(
            {
                "site": site.name, "role": site.role, "block": site.block, "shape": list(site.shape),
                "reads": site.reads,
                "stored": network.source.tensors[network.stored_name(site.parameter)].dtype,
                "bytes": network.source.tensors[network.stored_name(site.parameter)].bytes, "takes": takes,
            }
        )  # fmt: skip
    value = {
        "model": str(network.source.path), "source": network.source.description, "bytes": network.source.stored_bytes,
        "fingerprint": network.source.fingerprint, "blocks": [block.name for block in network.blocks], "sites": rows,
        "tied": [list(names) for names in network.tied], "untouched": dict(network.untouched),
        "groups": [[site.name for site in group] for group in network.groups()],
    }  # fmt: skip
    if arguments.json:
        _json(value)
    else:
        tables.inspection(value)
    return 0


def measure(arguments: Namespace) -> int:
    """Compare two models on a text."""
    reference = load(arguments.reference, allow_network=arguments.allow_network)
    compressed = load(arguments.compressed, allow_network=arguments.allow_network)
    Budget.lose("1%", confidence=arguments.confidence)  # refuses a confidence outside (0, 1)
    tokenizer = load_tokenizer(reference.source)
    words = cut(
        read_documents(arguments.on), tokenizer, length=arguments.length, split="measurement",
        source=describe_source(arguments.on), separator=separator_id(reference.source, tokenizer),
    )  # fmt: skip
    require_windows(words, 1, "measuring")
    sizes = [[s.shape[0] for s in n.sites if s.role == "embedding"] for n in (reference, compressed)]
    if sizes[0] != sizes[1]:
        raise InvalidMeasurement(
            f"vocabularies of {sizes[0]} and {sizes[1]} tokens", expected="two models that read the same tokens",
            mend="compare models of one family", site=arguments.compressed,
        )  # fmt: skip
    check_vocabulary(words, reference)
    order = permutation(len(words), arguments.seed, "measure", words.fingerprint)
    if arguments.max_windows:
        order = np.sort(order[: arguments.max_windows])
    progress = _progress(arguments)
    with progress.stage("measuring", len(order)) as advance:
        scores = Scorer(reference, compressed, words).score(order, advance)
    loss = scores["perplexity"]
    sums, counts = by_document(loss.degradation, loss.documents)
    value: dict[str, Any] = {
        "text": words.source, "fingerprint": words.fingerprint, "windows": len(order), "of": len(words),
        "length": arguments.length, "confidence": arguments.confidence,
        "perplexity_before": float(np.exp(loss.reference.mean())),
        "perplexity_after": float(np.exp(loss.compressed.mean())),
        "rise": math.expm1(float(loss.degradation.mean())), "kl": float(scores["kl"].degradation.mean()),
        "agreement": 1 - float(scores["disagreement"].degradation.mean()),
    }  # fmt: skip
    if len(sums) > 1:
        # Documents, not windows, are the units: windows of one document resemble each other.
        _, error, upper = clustered_bound(sums, counts, arguments.confidence)
        value |= {"documents": len(sums), "standard_error": float(error), "upper_approximate": math.expm1(float(upper))}
    if arguments.json:
        _json(value)
    else:
        tables.comparison(value, arguments.reference, arguments.compressed)
    return 0


def verify(arguments: Namespace) -> int:
    """Check an artifact; a failure is an error, exit 2."""
    result = run_verify(arguments.artifact)
    certificate = result.certificate
    if arguments.json:
        _json(
            {
                "files": result.files,
                "windows": result.windows,
                "holds": certificate.holds,
                "statement": certificate.statement,
            }
        )
    else:
        print(
            f"{result.files} files agree with their hashes; the certificate follows from its {result.windows} windows."
        )
        print(certificate.statement)
    return 0


def report(arguments: Namespace) -> int:
    """Write the page again."""
    page = pages.write(Path(arguments.artifact), Path(arguments.output) if arguments.output else None)
    if arguments.json:
        _json({"report": str(page)})
    else:
        print(page)
    return 0


def listing(arguments: Namespace) -> int:
    """Show every method, format and engine."""
    methods = [
        {
            "name": kind.name, "room": room, "paper": kind.paper, "needs": sorted(kind.needs),
            "what": (kind.__doc__ or "").strip().splitlines()[0],
        }
        for room, kind in catalogue.every()
    ]  # fmt: skip
    value = {
        "methods": methods,
        "formats": [{"name": kind.name, "what": (kind.__doc__ or "").splitlines()[0]} for kind in FORMATS],
        "engines": [{"name": e.name, "files": e.file_format, "checked": e.version, "how": e.evidence} for e in ENGINES],
    }
    if arguments.json:
        _json(value)
    else:
        tables.listing(value)
    return 0


VERBS = {
    "compress": compress, "plan": plan, "inspect": inspect, "measure": measure, "verify": verify, "report": report,
    "list": listing,
}  # fmt: skip


def _budget(arguments: Namespace) -> Budget | None:
    if arguments.lose is not None:
        return Budget.lose(arguments.lose, confidence=arguments.confidence)
    if arguments.fit is not None:
        return Budget.fit(arguments.fit, confidence=arguments.confidence)
    if arguments.bits is not None:
        return Budget(metric="bits", at_most=arguments.bits, unit="bits per weight", confidence=arguments.confidence)
    return None


def _settings(arguments: Namespace) -> Settings:
    given = {
        "engine": arguments.engine, "length": arguments.length, "calibration_windows": arguments.calibration_windows,
        "selection_windows": arguments.selection_windows, "seed": arguments.seed, "allocation": arguments.allocation,
        "method": arguments.method, "dtype": arguments.dtype, "salt": getattr(arguments, "salt", ""),
        "certification_windows": getattr(arguments, "max_windows", None),
    }  # fmt: skip
    if arguments.threads:
        given["threads"] = arguments.threads
    catalogue.find(arguments.method, "quantization")
    catalogue.find(arguments.allocation, "allocation")
    torch.set_num_threads(given.get("threads", torch.get_num_threads()))
    return Settings(**given)


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


def _progress(arguments: Namespace) -> Progress:
    return Progress(show=not arguments.quiet)


def _json(value: Mapping[str, Any]) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
