"""What the claim means and does not mean; how to load the model, make it again, and check it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pennyweight.budget import Claim
from pennyweight.errors import UnknownName
from pennyweight.export import find, how_to_load
from pennyweight.report.html import Html, bullets, folded, paragraph, section, table, tag
from pennyweight.report.record import Record
from pennyweight.report.shown import complete, named
from pennyweight.report.words import NONE, duration, integer, limit, number, share, significant, size


def meaning(record: Record, place: int) -> Html:
    """Limits of the claims, in plain words."""
    claims = record.claims
    sure = limit(record.certificate.confidence)
    says: list[object] = [f"It rests on {scope}." for scope in dict.fromkeys(c.scope for c in claims) if scope]
    sampled = [claim for claim in claims if not complete(claim)]
    says += [_scoped(sampled, scope, sure) for scope in sorted({claim.terms.scope for claim in sampled})]
    if all(complete(claim) for claim in claims):
        says.append("It is exact: every unit was scored, so there is no sampling error and no confidence.")
    says.append(
        "Both models were run in float32 arithmetic, the compressed one from the files as written. An engine that "
        "computes in fewer bits adds its own rounding to both."
    )
    for claim in claims:
        if claim.terms.tail_alpha and not complete(claim) and claim.terms.scope != "asymptotic":
            above = f"{integer(claim.above_cap)} of the {claim.counted} scored lay beyond that; "
            says.append(
                f"{named(claim)}: in the bound, one of the {claim.counted} counts at most "
                f"{significant(claim.terms.cap)} {claim.score_unit}. {above}at most {share(claim.tail_bound)} of all "
                f"{claim.counted} do, at the same confidence."
            )
    differs = [
        "It is not a claim about other texts, other languages, or tasks: a model can keep its perplexity "
        "here and lose a skill.",
        "It is not a claim about single answers: the units that became worst are listed above.",
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


def _scoped(claims: Sequence[Claim], scope: str, sure: str) -> str:
    """What a confidence is about: the order, the draw of units, or many documents."""
    names = ", ".join(named(claim) for claim in claims if claim.terms.scope == scope)
    if scope == "corpus":
        return (
            f"The {sure} are about the random order in which units were drawn ({names}): were the true loss on these "
            "very units above the bound, such an order would come up at most that rarely."
        )
    if scope == "source":
        return (
            f"The {sure} are about the draw of units from their source ({names}), and hold if units are independent: "
            "were the true loss of the source above the bound, such units would come up at most that rarely."
        )
    return (
        f"The {sure} are approximate ({names}): they rest on documents that are independent and many, and nothing "
        "says how many are enough."
    )


def using(record: Record, place: int) -> Html:
    """Load, verify, reproduce."""
    name = record.name
    parts = [] if record.bare else [tag("h3", "Load it"), *_engine(record)]
    parts += [
        tag("h3", "Verify it"),
        _code(f"pennyweight verify {shlex.quote(name)}"),
        paragraph(
            "checks the hash of every file against the seal and computes the certificate again from the scores it "
            "rests on. This page itself is not sealed: where it and the certificate differ, the certificate counts."
        ),
        tag("h3", "Make it again"),
        _code(_command(record)),
        paragraph(
            "Run it with the versions and settings below, and on the same texts and tasks: their hashes must agree. "
            "If you passed texts of your own, pass them again. Equal inputs give equal files."
        ),
    ]
    if not record.bare:
        plan = tag("code", f"--plan {shlex.quote(name + '/pennyweight/plan.toml')}")
        parts.append(paragraph("To repeat this candidate without a search, add ", plan, "."))
    hashes = _hashes(record)
    claimed = record.certificate.fingerprints.get("code")
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
    model = str(record.summary.get("model") or "MODEL")
    words = ["pennyweight", "compress", model, "--out", f"{record.name}-again"]
    if record.bare:
        other = str(record.summary.get("compressed") or "COMPRESSED")
        words = ["pennyweight", "certify", model, other, "--out", f"{record.name}-again"]
    for claim in record.limits:
        words += ["--lose", claim.budget.label]
    allowed = record.size_limit
    if allowed is not None and allowed.metric == "size":
        words += ["--fit", f"{allowed.at_most:.0f}B"]
    elif allowed is not None and allowed.metric == "memory":
        words += ["--memory", f"{allowed.at_most:.0f}B"]
    elif allowed is not None:
        words += ["--bits", f"{allowed.at_most:.12g}"]
    return shlex.join([*words, "--confidence", f"{record.claims[0].budget.confidence:.12g}"])


def _hashes(record: Record) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in sorted(record.certificate.fingerprints.items()):
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
