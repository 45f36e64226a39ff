"""What became of the model: every block, every site of the ledger, every tensor of the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pennyweight.errors import VerificationFailed
from pennyweight.export import Accounting
from pennyweight.report import heat
from pennyweight.report.html import Html, bullets, folded, join, paragraph, section, table, tag
from pennyweight.report.record import Record, Values
from pennyweight.report.words import NONE, count, decimal, integer, number, share, significant, size

MEANING = {
    "kept": "bit for bit",
    "cast": "to another float type",
    "transformed": "into codes and scales",
    "dropped": "not written",
}


def blocks(record: Record, place: int) -> Html:
    """Pictures of a stack of blocks: bits, error, and what more bits would bring."""
    title = "What became of each block"
    prices = _prices(record)
    grids, outside = heat.grids([{**row, "price": prices.get(str(row.get("site")))} for row in record.ledger])
    parts: list[Html] = []
    for index, grid in enumerate(grids):
        if any(not heat.dense(row) for row in grid.cells.values()):
            parts += [heat.bits_picture(grid, f"bits{index}"), heat.error_picture(grid, f"error{index}")]
            parts += [heat.price_picture(grid, f"price{index}")] if prices else []
        else:
            parts.append(heat.bits_picture(grid, f"bits{index}"))
    if not record.ledger:
        parts.append(paragraph("The artifact holds no ledger of its sites."))
    elif not grids:
        parts.append(paragraph("No site’s name has the number of a block in it; the table of all sites lists them."))
    if outside:
        said = [f"{row.get('site')}: {row.get('actual')}{_bits(row)}" for row in outside]
        parts += [paragraph(tag("b", "Outside the blocks")), bullets(said)]
    told = paragraph(
        "A row is a role, a column is a block. The relative output error is the share of an output’s mean square that "
        "rounding changed, on the calibration text. Point at a cell for its numbers; the table of all sites has "
        "them too."
    )
    return section(place, title, told, *parts)


def _prices(record: Record) -> dict[str, float]:
    """Nats a megabyte that the next larger step would save, by site; sites that are decided together share one."""
    return {
        site: -move[2] / move[1] * 1e6
        for group in record.explanation.get("groups", [])
        if (move := group["dearer"])
        for site in group["sites"]
    }


def _bits(row: Values) -> str:
    return "" if heat.dense(row) else f", {decimal(row.get('bits'), 2)} bits per weight"


def fell_back(row: Values) -> bool:
    """Whether something else was done than the plan meant; `dense` and `dense float16` are the same."""
    intended, actual = str(row.get("intended", "")), str(row.get("actual", ""))
    return intended != actual and not (intended == "dense" and actual.startswith("dense"))


def ledger(record: Record, place: int) -> Html:
    """Fallbacks first, then what was kept, then all the rest."""
    title = "What was meant and what was done"
    rows = record.ledger
    if not rows:
        return section(place, title, paragraph("The artifact holds no ledger of its sites."))
    fallbacks = [row for row in rows if fell_back(row)]
    kept = [row for row in rows if heat.dense(row) and not fell_back(row)]
    done = [row for row in rows if not heat.dense(row)]
    parts = [_fallbacks(fallbacks, len(rows)), _kept(kept)]
    raised = [row for row in done if (number(row.get("factorisations")) or 0) > 1]
    if raised:
        names = ", ".join(f"{row.get('site')} ({significant(row.get('damping'), 2)})" for row in raised[:8])
        more = f" and {len(raised) - 8} more" if len(raised) > 8 else ""
        parts.append(
            paragraph(
                tag("b", f"Damping was raised at {count(len(raised), 'site')}: "), f"{names}{more}.", class_="notice"
            )
        )
    if done:
        parts.append(_steps(done))
    parts.append(folded(f"All {count(len(rows), 'site')}", _all(rows)))
    return section(place, title, *parts)


def _fallbacks(rows: Sequence[Values], sites: int) -> Html:
    if not rows:
        return paragraph(tag("b", "No fallbacks. "), f"All {count(sites, 'site')} got what the plan meant for them.")
    told = paragraph(
        tag(
            "b", f"⚠ Fallbacks: {count(len(rows), 'site')} of {integer(sites)} got something else than the plan meant. "
        ),
        "What that cost is part of every measurement on this page.",
    )
    cells = [
        [row.get("site"), row.get("intended"), row.get("actual"), row.get("reason") or "no reason recorded"]
        for row in rows
    ]
    shown = table(
        ("Site", "Meant", "Done instead", "Why"), cells, caption="Sites where the plan could not be carried out"
    )
    return tag("div", told, shown, class_="alarm")


def _kept(rows: Sequence[Values]) -> Html:
    if not rows:
        return paragraph("No site was kept dense.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        why = (str(row.get("reason") or "no reason recorded"), str(row.get("actual")))
        reasons.setdefault(why, []).append(str(row.get("site")))
    cells = [[actual, why, integer(len(sites)), _names(sites)] for (why, actual), sites in reasons.items()]
    return table(
        ("Stored as", "Why", "Sites", "Which"), cells, caption=f"Kept dense: {count(len(rows), 'site')}", numbers={2}
    )


def _names(sites: Sequence[str]) -> Html:
    shown = ", ".join(sites[:6])
    if len(sites) <= 6:
        return join([shown])
    return folded(f"{shown} and {len(sites) - 6} more", ", ".join(sites[6:]))


def _steps(rows: Sequence[Values]) -> Html:
    groups: dict[str, list[Values]] = {}
    for row in rows:
        groups.setdefault(str(row.get("actual")), []).append(row)
    cells = []
    for step, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        bits = [b for row in members if (b := number(row.get("bits"))) is not None]
        errors = [e for row in members if (e := number(row.get("error"))) is not None]
        roles = Counter(str(row.get("site")).rpartition(".")[2] for row in members)
        cells.append([
            step, integer(len(members)), decimal(sum(bits) / len(bits), 2) if bits else NONE,
            share(max(errors), 2) if errors else NONE, ", ".join(f"{name} {n}" for name, n in roles.most_common()),
        ])  # fmt: skip
    head = ("Step", "Sites", "Bits per weight (mean of sites)", "Largest output error", "Where")
    return table(head, cells, caption=f"{count(len(rows), 'site')} compressed, by step", numbers=range(1, 4))


def _all(rows: Sequence[Values]) -> Html:
    cells = []
    for row in rows:
        kept = heat.dense(row)
        damping = number(row.get("damping"))
        cells.append([
            row.get("site"), row.get("intended"), row.get("actual"), row.get("reason") or NONE,
            NONE if kept else decimal(row.get("bits"), 3), NONE if kept else share(row.get("error")),
            NONE if kept or not damping else significant(damping, 2),
        ])  # fmt: skip
    head = ("Site", "Meant", "Done", "Why", "Bits per weight", "Output error", "Damping")
    return table(head, cells, caption="All sites, in the model’s order", numbers=range(4, 7))


def accounting(record: Record, place: int) -> Html:
    """Every tensor of the source has a row, and the rows add up to what was written."""
    title = "Where every tensor went"
    found = record.accounting
    if found is None:
        return section(place, title, paragraph("The artifact holds no accounting of its tensors."))
    actions = dict.fromkeys(row.action for row in found.rows)
    cells: list[list[object]] = []
    for action in (*(a for a in MEANING if a in actions), *(a for a in actions if a not in MEANING)):
        rows = [row for row in found.rows if row.action == action]
        before, after = sum(row.bytes_before for row in rows), sum(row.bytes_after for row in rows)
        cells.append([f"{action} {MEANING.get(action, '')}".strip(), integer(len(rows)), size(before), size(after)])
    before = sum(row.bytes_before for row in found.rows)
    cells.append([tag("b", "all"), integer(len(found.rows)), size(before), size(found.bytes_after)])
    parts = [table(("What", "Tensors", "Before", "After"), cells, caption="Tensors of the source", numbers=range(1, 4))]
    dropped = [f"{row.name}: {row.reason}" for row in found.rows if row.action == "dropped"]
    if dropped:
        parts += [paragraph(tag("b", "Dropped")), bullets(dropped)]
    return section(place, title, _reconciled(found, record.summary), *parts)


def _reconciled(found: Accounting, summary: Mapping[str, object]) -> Html:
    try:
        found.reconcile()
    except VerificationFailed as error:
        return paragraph(tag("b", "⚠ The accounts do not agree: "), f"{error.happened}.", class_="alarm")
    words = (
        f"All {integer(len(found.expected))} tensors of the source have exactly one row, and the rows add up to the "
        f"{integer(found.written)} bytes of tensors found in the files."
    )
    total = number(summary.get("bytes_after"))
    if total is not None and total >= found.written:
        words += (
            f" The other {size(total - found.written)} on disk are headers, the configuration and files copied with "
            "the model, such as the tokenizer."
        )
    return paragraph(tag("b", "✓ Reconciled. "), words)
