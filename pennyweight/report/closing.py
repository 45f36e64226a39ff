"""What the claim means and does not mean; how to load the model, make it again, and check it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from pennyweight.errors import UnknownName
from pennyweight.export import find, how_to_load
from pennyweight.report.html import Html, bullets, folded, paragraph, section, table, tag
from pennyweight.report.record import Record
from pennyweight.report.words import NONE, count, duration, integer, limit, number, share, significant, size


def meaning(record: Record, place: int) -> Html:
    """Limits of the claim, in plain words."""
    terms, certificate = record.terms, record.certificate
    sure = limit(record.budget.get("confidence"))
    exact = record.verdict == "exact"
    says = [f"It is about one text: {certificate.get('scope') or 'not recorded'}."]
    if exact:
        says.append(
            "It is exact for that text: every window was scored, so there is no sampling error and no confidence."
        )
    elif record.claimed:
        says.append(
            f"The {sure} are about the random order in which windows were drawn, and hold whenever one stops: were the "
            "true loss on this text above the bound, such an order would come up at most that rarely."
        )
    says.append(
        "Both models were run in float32 arithmetic, the compressed one from the files as written. An engine that "
        "computes in fewer bits adds its own rounding to both."
    )
    if terms is not None and not exact:
        cap = f"In the bound, a window counts at most {significant(terms.cap)} nats per token. "
        above = number(certificate.get("above_cap"))
        seen = "" if above is None else f"{count(int(above), 'window')} scored lay beyond that; "
        says.append(
            f"{cap}{seen}at most {share(certificate.get('tail_bound'))} of all windows do, at the same confidence."
        )
    differs = [
        "It is not a claim about other texts, other languages, or tasks: a model can keep its perplexity "
        "here and lose a skill.",
        "It is not a claim about single answers: the windows that became worst are listed above.",
        "It is not a claim about speed or memory in use; what an engine does with the files is its own matter.",
    ]
    if record.rounded_before:
        differs.append(
            "It compares with the quantized file handed in, not with the full-precision model behind that file."
        )
    return section(
        place,
        "What this claim means, and what it does not",
        tag("h3", "It means" if record.claimed else "The measurement means"),
        bullets(says),
        tag("h3", "It does not mean"),
        bullets(differs),
    )


def using(record: Record, place: int) -> Html:
    """Load, verify, reproduce."""
    name = record.name
    parts = [
        tag("h3", "Load it"),
        *_engine(record),
        tag("h3", "Verify it"),
        _code(f"pennyweight verify {shlex.quote(name)}"),
        paragraph(
            "checks the hash of every file against the seal and computes the certificate again from the scores it "
            "rests on. This page itself is not sealed: where it and the certificate differ, the certificate counts."
        ),
        tag("h3", "Make it again"),
        _code(_command(record)),
        paragraph(
            "Run it with the versions and settings below, and on the same texts: their hashes must agree. If you "
            "passed texts of your own, pass them again. Equal inputs give equal files. To repeat this candidate "
            "without a search, add ",
            tag("code", f"--plan {shlex.quote(name + '/pennyweight/plan.toml')}"),
            ".",
        ),
    ]
    hashes = _hashes(record)
    claimed = (record.certificate.get("fingerprints") or {}).get("code")
    if record.run.get("code") and claimed and record.run["code"] != claimed:
        parts.append(
            paragraph(
                tag("b", "⚠ The program changed during the run: "),
                "the hash of its source code at the start is not the one in the certificate.",
                class_="alarm",
            )
        )
    for title, values in (("Settings", record.run.get("settings")), ("Versions", record.run.get("versions"))):
        if isinstance(values, dict) and values:
            rows = [[key, _plain(value)] for key, value in sorted(values.items())]
            parts.append(folded(title, table(("Name", "Value"), rows, caption=title)))
    if hashes:
        rows = [[key, tag("code", value)] for key, value in hashes.items()]
        parts.append(folded("Hashes (SHA-256)", table(("Of", "Hash"), rows, caption="Hashes (SHA-256)")))
    parts += _timing(record.timing)
    return section(place, "Use it, verify it, make it again", *parts)


def _engine(record: Record) -> list[Html]:
    name = record.summary.get("engine")
    if not name:
        return [paragraph("The artifact does not say for which engine it was written.")]
    try:
        engine = find(str(name))
    except UnknownName:
        return [paragraph(f"It was written for the engine “{name}”, which this version of pennyweight does not know.")]
    known = "it ran on such files" if engine.evidence == "loaded" else "its sources were read, it was not run"
    return [
        _code(how_to_load(engine, record.name).rstrip()),
        paragraph(f"Format {engine.file_format}; checked against {engine.version}: {known}.", class_="quiet"),
        bullets(f"{note}." for note in engine.notes),
    ]


def _command(record: Record) -> str:
    """Write the command with the options this page knows for certain; the rest is in the table of settings."""
    budget, words = record.budget, ["pennyweight", "compress", str(record.summary.get("model") or "MODEL")]
    words += ["--out", f"{record.name}-again"]
    allowed = number(budget.get("at_most"))
    match budget.get("metric"), allowed:
        case "perplexity", float():
            words += ["--lose", f"{100 * allowed:.12g}%"]
        case "size", float():
            words += ["--fit", f"{allowed:.0f}B"]
        case "bits", float():
            words += ["--bits", f"{allowed:.12g}"]
    if number(budget.get("confidence")) is not None:
        words += ["--confidence", f"{budget['confidence']:.12g}"]
    return shlex.join(words)


def _hashes(record: Record) -> dict[str, str]:
    found: dict[str, str] = {}
    prints = record.certificate.get("fingerprints")
    for key, value in sorted((prints if isinstance(prints, dict) else {}).items()):
        found[f"{key} (certificate)"] = str(value)
    for key in ("model", "code", "plan"):
        if record.run.get(key):
            found[f"{key} (start of the run)"] = str(record.run[key])
    return found


def _timing(timing: Mapping[str, Any]) -> list[Html]:
    stages = timing.get("stages")
    if not isinstance(stages, dict) or not stages:
        return []
    rows = [
        [name, duration(seconds)] for name, seconds in sorted(stages.items(), key=lambda item: -(number(item[1]) or 0))
    ]
    peak = size(timing.get("peak_memory"))
    told = paragraph(
        f"{timing.get('machine') or 'Machine not recorded'}; peak memory {peak}. A run that was interrupted and went "
        "on shows the time of its last part. Seconds are not sealed: they differ from run to run."
    )
    return [folded("Time by stage", table(("Stage", "Time"), rows, caption="Time by stage", numbers={1}), told)]


def _plain(value: object) -> str:
    if value is None or value == "":
        return NONE
    if isinstance(value, dict | list):
        return ", ".join(str(item) for item in value)
    return integer(value) if isinstance(value, int) and not isinstance(value, bool) and value > 9999 else str(value)


def _code(words: str) -> Html:
    return tag("pre", tag("code", words), tabindex="0")
