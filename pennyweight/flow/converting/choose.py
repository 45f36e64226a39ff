"""What every compressed tensor of a source becomes in other files: the cheapest format that holds its very numbers.

Where an engine has no such format, a tensor is rounded once more, to the cheapest format on the engine's menu that is
no coarser: as many levels or more, and a scale for as many inputs or fewer, or else four times the levels. Zero points
that are codes count as twice the levels of a fixed middle, and minima that are any number as twice those. Where there
is none, to the finest on the menu; and where the engine takes no codes at all for a site, it becomes dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pennyweight import catalogue
from pennyweight.errors import InvalidMethod, InvalidModel
from pennyweight.export.engines import Engine
from pennyweight.export.files import StoresParts
from pennyweight.flow.apply import carry_out
from pennyweight.flow.progress import Progress
from pennyweight.formats import Compressed, Dense, Format, Numbers, Part
from pennyweight.network.network import Network, Site
from pennyweight.plan import Stage, Step

SAME, WIDER, ROUNDED, DENSE = "exact (same codes)", "exact (wider)", "re-rounded", "dense"
REAL = {"minimum", "sub_minimum", "offset"}  # fields by which the middle of a range is any number
FINER = 4  # times the levels make up for scales that more inputs share


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What becomes of the sites of a network.

    Args:
        network: the source.
        engine: for which.
        dtype: of the model.
        method: quantizer by which sites are rounded once more.
        formats: by name of site; a site without one becomes dense.
        how: `SAME`, `WIDER` or `ROUNDED`, for the same sites.
    """

    network: Network
    engine: Engine
    dtype: str
    method: str
    formats: Mapping[str, Format] = field(default_factory=dict)
    how: Mapping[str, str] = field(default_factory=dict)

    @property
    def rounded(self) -> list[str]:
        """Sites whose numbers no format of the engine holds."""
        return [name for name, how in self.how.items() if how == ROUNDED]

    @property
    def may_cast(self) -> bool:
        """Whether a tensor without a format may come out as other numbers: it is in another type than the model."""
        decided = {self.network.stored_name(self.network.by_name[name].parameter) for name in self.formats}
        others = {info.dtype for name, info in self.network.source.tensors.items() if name not in decided}
        return self.dtype != "float32" and bool(others - {self.dtype})

    def compressed(self, site: Site) -> Compressed:
        """What is written of a site."""
        part, format = part_of(site, self.network), self.formats[site.name]
        if part is not None and (held := Numbers(part, site.shape).held_by(format)) is not None:
            return Compressed((held,), site.shape)
        weight = self.network.source.read(self.network.stored_name(site.parameter)).float()
        if isinstance(format, Dense):
            return Compressed((format.store(weight),), site.shape)
        return carry_out(Step((Stage(self.method, format),)), weight, None, 0, site.name)[0]


def choose(network: Network, engine: Engine, dtypes: Sequence[str], method: str, progress: Progress) -> Choice:
    """Find a format for every site that is stored as codes.

    Args:
        network: the source.
        engine: for which.
        dtypes: of the model, to be tried in this order: the first in which fewest sites are rounded is taken.
        method: quantizer by which sites are rounded that must be.
        progress: told about every type that is tried.
    """
    best: Choice | None = None
    for dtype in dtypes:
        with progress.stage(f"looking for room, in {dtype}", len(network.groups())) as advance:
            found = Choice(network=network, engine=engine, dtype=dtype, method=method)
            formats, how = dict[str, Format](), dict[str, str]()
            for group in network.groups():
                for members in _decided_together(group, engine, network):
                    _decide(members, found, formats, how)
                advance()
        found = Choice(network=network, engine=engine, dtype=dtype, method=method, formats=formats, how=how)
        if best is None or len(found.rounded) < len(best.rounded):
            best = found
        if not best.rounded:
            break
    assert best is not None
    return best


def part_of(site: Site, network: Network) -> Part | None:
    """What is stored of a site's tensor; None where it is dense, or codes of a kind we know only the numbers of."""
    source = network.source
    if not isinstance(source, StoresParts):
        return None
    try:
        part = source.read_part(network.stored_name(site.parameter))
    except InvalidModel:
        return None
    return None if isinstance(part.format, Dense) else part


def check_method(name: str) -> None:
    """Refuse a quantizer that needs more than a weight.

    Raises:
        UnknownName: there is none of this name.
        InvalidMethod: it needs statistics, which a conversion does not collect.
    """
    needs = catalogue.find(name, "quantization").needs
    if needs:
        raise InvalidMethod(
            f"{name} needs the {', '.join(sorted(needs))} of what a site reads", expected="such as round_to_nearest",
            mend="compress the model this one was made of: pennyweight compress", site="--method",
        )  # fmt: skip


def _decided_together(group: Sequence[Site], engine: Engine, network: Network) -> list[list[Site]]:
    shared = len({network.stored_name(site.parameter) for site in group}) < len(group)
    return [list(group)] if engine.fused_groups or shared else [[site] for site in group]


def _decide(members: list[Site], choice: Choice, formats: dict[str, Format], how: dict[str, str]) -> None:
    """The format of sites that get one; nothing where they are dense now, or must be."""
    network, engine = choice.network, choice.engine
    parts = [part_of(site, network) for site in members]
    found = [Numbers(part, site.shape) for part, site in zip(parts, members, strict=True) if part is not None]
    if len(found) < len(members):  # joined with something dense: they become dense together
        return
    wide = min(numbers.run for numbers in found)
    offered = engine.reads.holding(members[0].shape[1], choice.dtype, wide)
    for format in _cheapest(offered, members, engine, network):
        held = [numbers.held_by(format) for numbers in found]
        if all(one is not None for one in held):
            for site, numbers, one in zip(members, found, held, strict=True):
                assert one is not None
                formats[site.name], how[site.name] = (
                    format,
                    SAME if _same_codes(numbers.part, one, site.shape) else WIDER,
                )
            return
    menu = _cheapest(engine.menu_of(members, choice.dtype), members, engine, network)
    if not menu:
        return
    fitting = [f for f in menu if all(_no_coarser(f, n.part.format, s) for n, s in zip(found, members, strict=True))]
    format = fitting[0] if fitting else menu[-1]
    for site, numbers in zip(members, found, strict=True):
        formats[site.name] = format
        how[site.name] = ROUNDED if numbers.held_by(format) is None else WIDER


def _cheapest(offered: Sequence[Format], members: list[Site], engine: Engine, network: Network) -> list[Format]:
    fits = [f for f in offered if not any(engine.refuses(site, f, network) for site in members)]
    return sorted(fits, key=lambda f: sum(f.stored_bits(site.shape) for site in members))


def _same_codes(before: Part, after: Part, shape: tuple[int, int]) -> bool:
    first, second = before.tensors.get("codes"), after.tensors.get("codes")
    if first is None or second is None or not torch.equal(first.flatten(), second.flatten()):
        return False
    return _levels(before.format, shape) == _levels(after.format, shape)


def _levels(format: Format, shape: tuple[int, int]) -> int | None:
    """Of its codes, which it has."""
    return next(field.levels for field in format.fields(shape) if field.name == "codes")


def _no_coarser(format: Format, than: Format, site: Site) -> bool:
    """See the head of this file."""
    if isinstance(format, Dense):
        return True
    (levels, width), (levels_before, width_before) = _grain(format, site.shape), _grain(than, site.shape)
    return levels >= levels_before * (1 if width <= width_before else FINER)


def _grain(format: Format, shape: tuple[int, int]) -> tuple[int, int]:
    """Levels, with what the place of their middle counts for, and inputs that share the finest scale."""
    fields = {field.name: field for field in format.fields(shape)}
    codes = fields.pop("codes", None)
    across = max((field.shape[1] for field in fields.values() if len(field.shape) == 2), default=1)
    free = 4 if REAL & fields.keys() else 2 if "zero_point" in fields else 1
    return free * (codes.levels or 1 if codes is not None else 1), shape[1] // max(across, 1)
