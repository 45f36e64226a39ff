"""What is found, proven and compressed of every family: the rows of docs/families.md.

python tests/family_table.py        writes the page; test_families.py holds every row of it to a fresh run
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from families import FAMILIES, Family

from pennyweight import catalogue
from pennyweight.errors import InvalidMethod, InvalidTransform
from pennyweight.flow.modules.store import pack, unpack
from pennyweight.flow.rewrite import rewrite
from pennyweight.formats import Compressed, Grid
from pennyweight.network.finding.trace import network_of, symmetries_of
from pennyweight.network.network import Network

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
QUICK = {"learned_rotation": "learned_rotation(steps=2)", "learned_scale": "learned_scale(steps=2)"}
GROUPS = ("orthogonal", "permutation", "invertible", "diagonal", "positive")
HEAD = """# Families

Each row is a tiny random network of the real class, traced, rewritten and compressed by the tests
(`tests/families.py`); nothing in the package knows their names. `python tests/family_table.py` writes this page, and
the tests hold every row to a fresh run.

*Sites* are weights that something multiplies by; *kept* are tensors of two dimensions or more that are none.
*Symmetries* are the changes of basis that edges let through: orthogonal, permutation, invertible in blocks, diagonal,
positive. *Proven* are the rewrites that changed something and left the outputs as they were to 1e-10 in float64; all
others found nothing to do or were refused with the edge named. *Round trip*: every site rounded to 4 bits, packed, read
back bit for bit, and run.

| family | sites | kept | symmetries O / P / I / D / + | rewrites proven | round trip |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What became of one family."""

    family: str
    sites: int
    kept: int
    symmetries: tuple[int, ...]
    proven: tuple[str, ...]
    round_trip: int

    def line(self) -> str:
        groups = " / ".join(map(str, self.symmetries))
        proven = f"{len(self.proven)}: " + ", ".join(self.proven)
        return (
            f"| {self.family} | {self.sites} | {self.kept} | {groups} | {proven} | {self.round_trip} of {self.sites} |"
        )


def row(family: Family) -> Row:
    model = family.model()
    inputs = family.inputs(model)
    network = network_of(model, inputs, name=family.name)
    counts = Counter(symmetry.group for symmetry in symmetries_of(network))
    kept = sum("vector" not in reason for reason in network.untouched.values())
    proven = []
    for kind in catalogue.classes("rewrites"):
        try:
            changed, steps = rewrite(network, [QUICK.get(kind.name, kind.name)], calibration=[inputs], seed=1)
        except (InvalidTransform, InvalidMethod):
            continue
        if steps[0].edges or changed.source.fingerprint != network.source.fingerprint:
            proven.append(kind.name)
    return Row(
        family.name, len(network.sites), kept, tuple(counts[group] for group in GROUPS), tuple(proven),
        round_trip(network, inputs),
    )  # fmt: skip


def round_trip(network: Network, inputs: dict) -> int:
    """Sites that come back bit for bit from their codes; the network made of them runs."""
    module, grid = network.source.module, Grid(bits=4, group_size=None, symmetric=True)
    done: dict[str, tuple] = {}
    for site in network.sites:
        stored = network.stored_name(site.parameter)
        weight = site.matrix(network.source.read(stored)).float()
        scales = grid.fit(weight, search=False)
        done[stored] = (site, Compressed((scales.part(scales.round(weight)),), tuple(weight.shape)))
    back = unpack(module, pack(module, done, "float32"))
    parameters = dict(back.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        back(**inputs)
    same = set()
    for name, (site, one) in done.items():
        expected = site.restored(one.dequantize(), parameters[name].shape)
        if torch.equal(parameters[name], expected.to(parameters[name].dtype)):
            same.add(name)
    return sum(network.stored_name(site.parameter) in same for site in network.sites)


def main() -> None:
    chosen = [family for family in FAMILIES if not sys.argv[1:] or family.name in sys.argv[1:]]
    rows = []
    for family in chosen:
        rows.append(row(family).line())
        print(rows[-1], flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
