"""The verbs `rewrite` and `prove`: another basis for the same function, and whether two models are one function."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch

from pennyweight.cli import rewriting_tables as tables
from pennyweight.cli.output import print_json, progress_of
from pennyweight.flow.load import load
from pennyweight.flow.prove import prove as run_prove
from pennyweight.flow.rewrite import check_rewrites
from pennyweight.flow.rewrite import rewrite as run_rewrite
from pennyweight.flow.save import check_empty, save
from pennyweight.flow.steps import sample


def rewrite(arguments: Namespace) -> int:
    """Rewrite a model and write it as an ordinary checkpoint."""
    methods = check_rewrites(arguments.methods, calibrated=True)
    check_empty(Path(arguments.out))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    network, progress = load(arguments.model, allow_network=arguments.allow_network), progress_of(arguments)
    calibration = None
    if any(method.needs for method in methods):
        calibration = sample(
            arguments.calibration, network, count=arguments.calibration_windows, length=arguments.length,
            seed=arguments.seed,
        )  # fmt: skip
    rewritten, steps = run_rewrite(network, methods, calibration=calibration, seed=arguments.seed, progress=progress)
    saved = save(
        network, rewritten, steps, arguments.out, dtype=arguments.dtype, seed=arguments.seed, progress=progress
    )
    if arguments.json:
        print_json(
            {
                "out": str(saved.out), "dtype": saved.dtype, "bytes": saved.bytes, "change": saved.change,
                "fingerprint": saved.network.source.fingerprint, "steps": [asdict(step) for step in steps],
            }
        )  # fmt: skip
    else:
        tables.rewritten(arguments.model, saved, steps)
    return 0


def prove(arguments: Namespace) -> int:
    """Say whether two models are one function; exit 1 when they are not."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    before = load(arguments.reference, allow_network=arguments.allow_network)
    after = load(arguments.compressed, allow_network=arguments.allow_network)
    windows = None
    if arguments.on is not None:
        windows = sample(arguments.on, before, count=arguments.windows, length=arguments.length, seed=arguments.seed)
    proof = run_prove(before, after, windows=windows, seed=arguments.seed, progress=progress_of(arguments))
    if arguments.json:
        print_json({**asdict(proof), "holds": proof.holds, "statement": proof.statement})
    else:
        tables.proved(proof)
    return 0 if proof.holds else 1
