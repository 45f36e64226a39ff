"""The verb `tails`: how often sampled text contains something rare and bad, before and after."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pennyweight.cli.output import print_json
from pennyweight.errors import InvalidText, MissingFile
from pennyweight.flow.load import check_pair, load
from pennyweight.flow.sampling.tails import TailRisk, tail_risk
from pennyweight.methods.probability import ImportanceSampling


def tails(arguments: Namespace) -> int:
    """Estimate the share of bad texts by importance sampling, and bound it by plain samples."""
    bad, prompts = _pattern(arguments.bad), _prompts(Path(arguments.prompts))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sampling = ImportanceSampling(confidence=arguments.confidence)
    reference = load(arguments.reference, allow_network=arguments.allow_network)
    compressed = load(arguments.compressed, allow_network=arguments.allow_network)
    check_pair(reference, compressed)
    proposal = None
    if arguments.proposal:
        proposal = load(arguments.proposal, allow_network=arguments.allow_network)
        check_pair(reference, proposal)
    risk = tail_risk(
        reference, compressed, prompts, lambda text: float(bad.search(text) is not None), samples=arguments.samples,
        max_new_tokens=arguments.max_tokens, temperature=arguments.temperature, seed=arguments.seed, proposal=proposal,
        sampling=sampling,
    )  # fmt: skip
    if arguments.json:
        value = {**risk.to_json(), "bad": arguments.bad, "confidence": arguments.confidence}
        print_json(value)
    else:
        _show(risk, arguments.bad, arguments.confidence)
    return 0


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidText(
            f"{text!r} is not a regular expression: {error}", expected="a pattern that bad texts match",
            mend="escape brackets and stars with a backslash", site="--bad",
        ) from error  # fmt: skip


def _prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise MissingFile(
            "there is no such file", expected="a text file with one prompt a line", mend="check the path",
            site=str(path),
        ) from error  # fmt: skip
    except UnicodeDecodeError as error:
        raise InvalidText("not UTF-8", expected="a text file", mend="convert it", site=str(path)) from error
    return [line for line in lines if line.strip()]


def _show(risk: TailRisk, bad: str, confidence: float) -> None:
    console = Console(highlight=False)
    table = Table(title=f"share of texts that match {bad}", title_justify="left", show_edge=False)
    for heading in ("", "estimate", "its interval", "effective samples", f"certified at {confidence:.4g}"):
        table.add_column(heading, justify="right" if heading else "left")
    notes: list[str] = []
    for name, model in (("before", risk.reference), ("after", risk.compressed)):
        estimate = model.estimate
        table.add_row(
            name, f"{estimate.value:.3g}", f"{estimate.low:.3g} to {estimate.high:.3g}", f"{estimate.effective:.0f}",
            f"at most {model.certificate.bound:.3g}",
        )  # fmt: skip
        notes += [f"{name}: {note}" for note in estimate.notes]
    console.print(table)
    console.print(
        f"{risk.prompts} prompts; estimates from {risk.samples} weighted texts each, certificates from "
        f"{risk.plain_samples} plain ones. An estimate is unbiased and guarantees nothing; a certificate is exact."
    )
    for note in notes:
        console.print(note)
