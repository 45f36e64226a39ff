"""Take channels out of a network: rows that write them, columns that read them, and what a module says of its size.

Which channels go together is what a permutation symmetry says; that the others do not mind is tried, not assumed:
random numbers in their place have to leave all others as they are, and the smaller network has to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pennyweight.errors import InvalidModel, InvalidTransform
from pennyweight.network.changing.rebuild import Made, Read, Rebuilt, empty, rebuilt, stored_dtype
from pennyweight.network.finding.basis import PERMUTATION, Side, Symmetry
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.trace import skeleton, symmetries_of
from pennyweight.network.finding.watch import Change, Reader, Watched, Writer, watch
from pennyweight.network.network import Network
from pennyweight.numerics.random import stream

# What modules say of their sizes, and the dimension of their weight that it is about.
SAID = (
    ("out_features", 0), ("in_features", 1), ("out_channels", 0), ("in_channels", 1), ("nx", 0), ("nf", 1),
    ("embedding_dim", 1),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Removal:
    """Channels of a permutation symmetry to take out.

    Args:
        symmetry: says which parts of which tensors belong to a channel.
        channels: true for those that go `[size]`.
    """

    symmetry: Symmetry
    channels: Bool[Tensor, " size"]

    @property
    def count(self) -> int:
        """How many go."""
        return int(self.channels.sum())


def exchangeable(network: Network) -> tuple[Symmetry, ...]:
    """Edges whose channels, or heads, can be exchanged and that no norm goes through: it would count its channels."""
    return tuple(
        symmetry for symmetry in symmetries_of(network)
        if symmetry.group == PERMUTATION and symmetry.readers and not symmetry.norms
        and all(s.port.kind in ("weight", "bias", "vector") and s.port.groups == 1 for s in symmetry.sides)
    )  # fmt: skip


def shrunk(network: Network, removals: Sequence[Removal]) -> Network:
    """The network without some channels; what does not run without its own is left, and the description says so.

    Args:
        network: a module in memory, or a checkpoint whose config.json has one number for the size of all these edges.
        removals: with an empty one for every edge that could lose channels and has none to lose: a checkpoint loses as
            many everywhere.

    Raises:
        InvalidTransform: there are channels to remove from a checkpoint, and its config.json cannot say so.
    """
    if getattr(network.source, "module", None) is None:
        return _checkpoint(network, removals)
    wanted = [removal for removal in removals if removal.count]
    left: list[str] = []
    taken: list[Removal] = []
    try:
        result = _smaller(network, wanted) if wanted else network
        taken = wanted
    except InvalidModel:  # some part of it cannot: one by one
        result = network
        for removal in wanted:
            try:
                result = _smaller(network, [*taken, removal])
                taken.append(removal)
            except InvalidModel as error:
                left.append(f"{removal.symmetry.name}: {error.happened}")
    if left and taken:
        result = _smaller(network, taken, left=f", left as it was: {'; '.join(left)}")
    return result


def _smaller(network: Network, removals: Sequence[Removal], *, left: str = "") -> Network:
    module, keep = skeleton(network.source), _kept(network, removals)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    made = {}
    for name, dims in keep.items():
        made[network.stored_name(name)] = _made(network, name, dims)
        smaller = empty(made[network.stored_name(name)].shape, parameters[name])
        for alias, parameter in parameters.items():  # a tied tensor stays one
            if parameter is parameters[name]:
                holder = module.get_submodule(alias.rpartition(".")[0])
                holder._parameters[alias.rpartition(".")[2]] = smaller
                _tell(holder, tuple(parameter.shape), tuple(smaller.shape))
    total = sum(removal.count for removal in removals)
    what = f"{total} channels of {len(removals)} edges removed{left}"
    return rebuilt(network, Rebuilt(network.source, made, what=what, module=module))


def _checkpoint(network: Network, removals: Sequence[Removal]) -> Network:
    """Equally many channels less everywhere, under a config with one number changed that fits every tensor."""
    reasons = []
    for size in sorted({removal.symmetry.size for removal in removals if removal.count}, reverse=True):
        alike = [removal for removal in removals if removal.symmetry.size == size]
        count = min(removal.count for removal in alike)
        if not count:
            none = next(removal.symmetry.name for removal in alike if not removal.count)
            reasons.append(f"{none} has no dead channel, and config.json has one size for all")
            continue
        trimmed = [Removal(r.symmetry, r.channels & (r.channels.cumsum(0) <= count)) for r in alike]
        made = {network.stored_name(n): _made(network, n, dims) for n, dims in _kept(network, trimmed).items()}
        over = sum(removal.count - count for removal in alike)
        what = f"{count} channels of each of {len(alike)} edges removed" + (f", {over} more left" if over else "")
        for key in [k for k, v in network.source.config.items() if type(v) is int and v == size]:
            config = {**network.source.config, key: size - count}
            try:
                return rebuilt(network, Rebuilt(network.source, made, what=what, config=config))
            except InvalidModel:  # the shapes are not those that this number stands for
                continue
        reasons.append(f"no number of config.json stands for the {size} channels of {alike[0].symmetry.name}")
    if reasons:
        raise InvalidTransform(
            "; ".join(reasons), expected="equally many channels to remove from every layer",
            mend="load it with transformers and rewrite the module, whose layers may differ",
            site=str(network.source.path),
        )  # fmt: skip
    return network


Kept = dict[int, Tensor]  # by dimension: the indices that stay


def _kept(network: Network, removals: Sequence[Removal]) -> dict[str, Kept]:
    gone: dict[tuple[str, int], Tensor] = {}
    model = skeleton(network.source)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for removal in removals:
        for side in removal.symmetry.sides:
            port = side.port
            size = tensors[port.parameter].shape[port.dim]
            flags = gone.setdefault((port.parameter, port.dim), torch.zeros(size, dtype=torch.bool))
            flags[_places(side)[_chosen(side, removal.channels)]] = True
    found: dict[str, Kept] = {}
    for (name, dim), flags in gone.items():
        if bool(flags.any()):
            found.setdefault(name, {})[dim] = (~flags).nonzero().flatten()
    return found


def _places(side: Side) -> Tensor:
    """Where in its dimension the channels of a side are."""
    return torch.arange(len(side.index)) if side.port.channels is None else torch.tensor(side.port.channels)


def _chosen(side: Side, channels: Tensor) -> Tensor:
    """Which channels of a side follow some channels of the transform."""
    return (side.index >= 0) & channels[side.index.clamp(min=0)]


def _made(network: Network, name: str, dims: Kept) -> Made:
    shape = list(network.source.tensors[network.stored_name(name)].shape)
    for dim, kept in dims.items():
        shape[dim] = len(kept)

    def of(read: Read) -> Tensor:
        return _selected(read(network.stored_name(name)), dims)

    return Made(tuple(shape), stored_dtype(network, name), of)


def _selected(tensor: Tensor, dims: Kept) -> Tensor:
    for dim, kept in dims.items():
        tensor = tensor.index_select(dim, kept)
    return tensor


def _tell(owner: nn.Module, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Let a module know its size, where it says one."""
    for attribute, dim in SAID if len(before) > 1 else ():
        if getattr(owner, attribute, None) == before[dim]:
            setattr(owner, attribute, after[dim])


# What the other channels notice


@dataclass(frozen=True, eq=False)
class Noticed:
    """What an edge does without some of its channels.

    Args:
        apart: whether all that reads them is what the symmetry names, and the other channels do not change with them.
        silent: whether zeros in their place come out as zeros.
    """

    apart: bool
    silent: bool


def noticed(network: Network, removals: Sequence[Removal]) -> list[Noticed]:
    """Try for each edge what its readers see of the channels, when other numbers or zeros are written to them."""
    model = skeleton(network.source)
    inputs = network.inputs or example(model)
    base = watch(model, inputs, grad=False)
    spots = [list(_written(base, removal)) for removal in removals]

    def run(how: str) -> dict[str, Tensor]:
        changes: dict[str, Change] = {}
        for writer, places in (spot for each in spots for spot in each):
            changes[writer.name] = _overwriting(writer, places, how, changes.get(writer.name))
        return {n: r.tensor for n, r in watch(model, inputs, changes=changes, grad=False).readers.items()}

    seen, other, zeros = {n: r.tensor for n, r in base.readers.items()}, run("random"), run("zeros")
    moved = {name: _moved(base.readers[name], seen[name], other[name]) for name in seen}
    return [_noticed(base, removal, moved, zeros, removals) for removal in removals]


def _noticed(
    base: Watched, removal: Removal, moved: Mapping[str, Tensor], zeros: Mapping[str, Tensor],
    removals: Sequence[Removal],
) -> Noticed:  # fmt: skip
    own = dict(_read(base, removal))
    others = {name for r in removals if r is not removal for name, _ in _read(base, r)}
    apart = bool(own)
    for name, reader in base.readers.items():
        allowed = torch.zeros(reader.size, dtype=torch.bool)
        if name in own:
            allowed[own[name]] = True
        elif name in others or not bool(moved[name].any()):
            continue
        apart = apart and not bool((moved[name] & ~allowed).any())
    silent = all(not bool(zeros[n].movedim(base.readers[n].axis, -1)[..., places].any()) for n, places in own.items())
    return Noticed(apart, silent)


def _moved(reader: Reader, before: Tensor, after: Tensor) -> Tensor:
    if before.shape != after.shape:
        return torch.ones(reader.size, dtype=torch.bool)
    return (before != after).movedim(reader.axis, -1).reshape(-1, reader.size).any(0)


def _written(base: Watched, removal: Removal) -> Iterator[tuple[Writer, Tensor]]:
    """Writers with the places of the channels in what they write."""
    sides = [s for s in removal.symmetry.writers if s.port.kind in ("weight", "vector")]
    for writer in base.writers.values():
        for side in sides:
            if any(p.parameter == side.port.parameter and p.dim == side.port.dim for p in writer.ports):
                port = next(p for p in writer.ports if p.parameter == side.port.parameter)
                yield writer, _inside(port.channels, writer.size, side, removal.channels)


def _read(base: Watched, removal: Removal) -> Iterator[tuple[str, Tensor]]:
    for reader in base.readers.values():
        for side in removal.symmetry.readers:
            for port in reader.ports if reader.kind == "weight" else ():
                if port.parameter == side.port.parameter and port.dim == side.port.dim:
                    yield reader.name, _inside(port.channels, reader.size, side, removal.channels)


def _inside(channels: tuple[int, ...] | None, size: int, side: Side, chosen: Tensor) -> Tensor:
    """The places of chosen channels of a side, counted among those of one use of the tensor."""
    where = {channel: place for place, channel in enumerate(channels or range(size))}
    stored = _places(side)[_chosen(side, chosen)].tolist()
    return torch.tensor([where[channel] for channel in stored if channel in where], dtype=torch.long)


def _overwriting(writer: Writer, places: Tensor, how: str, before: Change | None) -> Change:
    def change(values: Tensor) -> Tensor:
        moved = (before(values) if before else values).movedim(writer.axis, -1).clone()
        draw = torch.randn(moved.shape, generator=stream(1, writer.name), dtype=moved.dtype)
        moved[..., places] = draw[..., places] if how == "random" else 0.0
        return moved.movedim(-1, writer.axis)

    return change
