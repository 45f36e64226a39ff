"""Do two networks compute one function? The same bits, the same up to rounding, or different, and from where on.

After a rewrite the weights are other numbers in another basis, so what is compared is what comes out, in float64. Where
the result was stored, every number was rounded once more, and that moves the outputs by something. How much is measured
and not guessed: every stored number that is not the same in both networks gets a random relative error of at most the
unit roundoff of the coarser of its two types, mean zero, in each network in turn, for a few seeds. The outputs may
change by `FACTOR` times the largest change seen so, and by the rounding of the arithmetic itself.

Inside, bases differ. The first edge that differs is looked for where they can only be turned (`network.running.grams`).

What no window reaches is not seen: positions behind its end, experts that no token chose. Tokens are looked for whose
embeddings changed most, and a window is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement, InvalidModel
from pennyweight.flow.load import check_pair
from pennyweight.flow.progress import QUIET, Advance, Progress
from pennyweight.flow.rewrite import LARGEST_CHANGE
from pennyweight.network.changing.fold import STORED
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.network import Network
from pennyweight.network.running.grams import Grams, comparable
from pennyweight.network.running.run import Read, change, passes
from pennyweight.numerics.random import derived_seed, stream

BITWISE, ALGEBRAIC, DIFFERENT = "bitwise", "algebraic", "different"
FACTOR = 2.0  # such errors are larger than those of one rounding already; two suffice for rounding twice
SEEDS = 2  # of rounding noise, in each of the two networks
BATCHES, LENGTH = 3, 24  # random inputs: two texts each, where the network reads text
TEXTS = 8  # windows of a given text, evenly spread
ABOUT_THE_FILE = frozenset({
    "_name_or_path", "architectures", "dtype", "quantization_config", "tie_word_embeddings", "torch_dtype",
    "transformers_version",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Whether two networks compute one function.

    Args:
        verdict: `bitwise`: every tensor that is used has the same bits, and the same code uses it. `algebraic`: outputs
            change by no more than rounding does. `different`: they change by more.
        change: largest relative change of the outputs over the inputs; 0 where nothing had to be run.
        bound: what rounding explains.
        dtype: the coarsest type among the tensors that differ.
        inputs: batches that both networks were run on.
        tokens: in them, where they are text.
        tensors: that are used.
        differ: those that have not the same bits.
        first: the first edge that differs, such as `model.layers.3.self_attn.o_proj:output`.
        first_change: relative change of the products between its rows.
        first_bound: what rounding explains of that.
    """

    verdict: str
    change: float = 0.0
    bound: float = 0.0
    dtype: str = ""
    inputs: int = 0
    tokens: int = 0
    tensors: int = 0
    differ: tuple[str, ...] = ()
    first: str = ""
    first_change: float = 0.0
    first_bound: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether they are one function, as far as this can tell."""
        return self.verdict != DIFFERENT

    @property
    def statement(self) -> str:
        """One sentence for a person."""
        if self.verdict == BITWISE:
            return f"The same function, bit for bit: {self.tensors} tensors are equal, and the same code uses them."
        on = f"{self.inputs} inputs" + (f" ({self.tokens} tokens)" if self.tokens else "")
        seen = f"in float64, outputs on {on} change by {self.change:.2e}, relative"
        if self.bound <= LARGEST_CHANGE:
            explained = f"rounding in the arithmetic explains {self.bound:.0e}"
        else:
            explained = f"rounding once more to {self.dtype} explains {self.bound:.2e}"
        if self.verdict == ALGEBRAIC:
            return f"The same function up to rounding: {seen}; {explained}."
        where = f" The first edge that differs is {self.first}, by {self.first_change:.2e}." if self.first else ""
        return f"Different functions: {seen}; {explained}.{where}"


def prove(
    before: Network, after: Network, *, inputs: Sequence[Mapping[str, Any]] | None = None,
    windows: Windows | None = None, seed: int = 0, progress: Progress = QUIET,
) -> Proof:  # fmt: skip
    """Compare two networks as functions; language models on disk are run a block at a time.

    Args:
        before: of a model on disk, or of a module in memory.
        after: the same, in whatever basis.
        inputs: keyword arguments of forward passes; random ones by default.
        windows: of a text, to be tried beside the random ones.
        seed: of the random inputs, and of the rounding noise.
        progress: told about every pass.

    Raises:
        InvalidMeasurement: they take or return other things, or return numbers that are not finite.
    """
    for network in (before, after):
        if not network.sites:
            raise InvalidModel(
                "its weights cannot be read one by one", expected="a model of tensors",
                mend="pennyweight measure compares what such a program returns", site=str(network.source.path),
            )  # fmt: skip
    check_pair(before, after)
    differ, used = _different_tensors(before, after)
    in_memory = any(getattr(n.source, "module", None) is not None for n in (before, after))
    if not differ and not in_memory and _same_code(before, after):
        return Proof(verdict=BITWISE, tensors=used)
    batches = list(inputs) if inputs is not None else list(_batches(before, after, windows, seed))
    tokens = sum(batch["input_ids"].numel() for batch in batches if isinstance(batch.get("input_ids"), Tensor))
    with progress.stage("running both networks", 2) as advance:
        first = _run(before, before.source.read, batches)
        advance()
        try:
            second = _run(after, after.source.read, batches)
        except (RuntimeError, TypeError, IndexError) as error:
            raise InvalidMeasurement(
                f"it does not take what the other takes: {str(error).splitlines()[0]}",
                expected="two networks with the same inputs", mend="compare a network with a rewrite of it",
                site=str(after.source.path),
            ) from error  # fmt: skip
        advance()
    moved = _moved(first, second, after)
    seen = {"change": moved, "inputs": len(batches), "tokens": tokens, "tensors": used, "differ": differ}
    if moved == 0 and not differ and in_memory and _kind(before) == _kind(after):
        return Proof(verdict=BITWISE, tensors=used, inputs=len(batches), tokens=tokens)
    if moved <= LARGEST_CHANGE:
        return Proof(verdict=ALGEBRAIC, bound=LARGEST_CHANGE, **seen)
    with progress.stage("measuring what rounding does", 2 * SEEDS) as advance:
        noise = list(_noise(before, after, first, second, batches, seed, advance))
    bound = max(LARGEST_CHANGE, FACTOR * max(one.change for one in noise))
    seen |= {"bound": bound, "dtype": _coarsest(before, after, differ)}
    if moved <= bound:
        return Proof(verdict=ALGEBRAIC, **seen)
    with progress.stage("looking for the first difference", 1):
        name, by, most = _first(before, after, first.grams, second.grams, noise)
    return Proof(verdict=DIFFERENT, first=name, first_change=by, first_bound=most, **seen)


# Tensors


def _used(network: Network) -> list[str]:
    """Names of all parameters, those that share a tensor too."""
    return list(dict.fromkeys([*network.outer, *(name for block in network.blocks for name in block.parameters)]))


def _different_tensors(before: Network, after: Network) -> tuple[tuple[str, ...], int]:
    """Parameters that do not have the same bits in both, and how many there are."""
    names = [list(network.source.tensors) if not (u := _used(network)) else u for network in (before, after)]
    every = list(dict.fromkeys([*names[0], *names[1]]))
    common = set(names[0]) & set(names[1])
    return tuple(name for name in every if name not in common or not _same_bits(before, after, name)), len(every)


def _same_bits(before: Network, after: Network, name: str) -> bool:
    one, two = (network.source.tensors[network.stored_name(name)] for network in (before, after))
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    a, b = (network.source.read(network.stored_name(name)).contiguous() for network in (before, after))
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _same_code(before: Network, after: Network) -> bool:
    """Whether config.json of both asks for the same computation."""
    one, two = ({k: v for k, v in n.source.config.items() if k not in ABOUT_THE_FILE} for n in (before, after))
    return one == two and not {"quantization_config"} & {*before.source.config, *after.source.config}


def _kind(network: Network) -> type:
    return type(getattr(network.source, "module", None))


def _dtype(network: Network, name: str) -> torch.dtype | None:
    info = network.source.tensors.get(network.stored_name(name))
    return None if info is None else STORED.get(info.dtype, torch.float32)  # codes are read as float32


def _coarser(before: Network, after: Network, name: str) -> torch.dtype:
    types = [t for network in (before, after) if (t := _dtype(network, name)) is not None and t.is_floating_point]
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def _coarsest(before: Network, after: Network, names: Sequence[str]) -> str:
    types = [_coarser(before, after, name) for name in names] or [torch.float64]
    return str(max(types, key=lambda dtype: torch.finfo(dtype).eps)).removeprefix("torch.")


# Inputs


def _batches(before: Network, after: Network, windows: Windows | None, seed: int) -> Iterator[Mapping[str, Any]]:
    given = before.inputs if before.inputs is not None else after.inputs
    if given is not None:
        yield given
        if all(isinstance(v, Tensor) and v.is_floating_point() for v in given.values()):
            for number in range(BATCHES):
                generator = stream(seed, "inputs", str(number))
                yield {
                    name: v.mean() + v.std(correction=0) * torch.randn(v.shape, generator=generator, dtype=v.dtype)
                    for name, v in given.items()
                }
        return
    model = skeleton(before.source)
    batch: Mapping[str, Any] = {}
    for number in range(BATCHES):
        batch = example(model, length=LENGTH, seed=derived_seed(seed, "inputs", str(number)))
        yield batch
    if "input_ids" not in batch:
        return
    ids = _most_changed(before, after, batch["input_ids"].numel())
    if len(ids) == batch["input_ids"].numel():
        yield {**batch, "input_ids": ids.reshape(batch["input_ids"].shape)}
    if windows is not None:
        for start in range(0, len(windows), -(-len(windows) // TEXTS)):
            yield {**{k: v for k, v in batch.items() if not isinstance(v, Tensor)},
                   "input_ids": windows.ids[start : start + 1].long()}  # fmt: skip


def _most_changed(before: Network, after: Network, count: int) -> Tensor:
    """Tokens whose embeddings changed their length most: it is the same in a turned basis."""
    lengths = []
    for network in (before, after):
        tables = [site for site in network.sites if site.role == "embedding"]
        if not tables:
            return torch.empty(0, dtype=torch.long)
        words = tables[0]  # what is looked up first; positions come later
        lengths.append(network.source.read(network.stored_name(words.parameter)).double().norm(dim=-1))
    by = (lengths[1] - lengths[0]).abs() / lengths[0].clamp(min=1e-300)
    order: Tensor = by.argsort(descending=True, stable=True)
    return order[:count]


# Runs


@dataclass(frozen=True, eq=False)
class _Run:
    outputs: list[Tensor]
    grams: Grams


@dataclass(frozen=True, eq=False)
class _Noise:
    """What rounding noise did to one network; its outputs are not kept, they are large."""

    change: float
    quiet: Grams
    loud: Grams


def _run(network: Network, read: Read, batches: Sequence[Mapping[str, Any]]) -> _Run:
    grams = Grams()
    return _Run(passes(network, batches, read=read, watcher=grams), grams)


def _moved(before: _Run, after: _Run, network: Network) -> float:
    """The largest relative change of the outputs of one input."""
    largest = 0.0
    for one, two in zip(before.outputs, after.outputs, strict=True):
        if one.shape != two.shape:
            raise InvalidMeasurement(
                f"{len(one)} and {len(two)} numbers come out for the same input",
                expected="two networks that return the same things", mend="compare a network with a rewrite of it",
                site=str(network.source.path),
            )  # fmt: skip
        if not bool(torch.isfinite(one).all()):
            raise InvalidMeasurement(
                "the outputs are not finite", expected="numbers that can be compared",
                mend="pass inputs of the kind this network takes", site=str(network.source.path),
            )  # fmt: skip
        moved = change(one, two)
        largest = max(largest, moved if moved == moved else torch.inf)
    return largest


def _noise(
    before: Network, after: Network, first: _Run, second: _Run, batches: Sequence[Mapping[str, Any]], seed: int,
    advance: Advance,
) -> Iterator[_Noise]:  # fmt: skip
    """Each network beside itself with rounding noise, for a few seeds."""
    for network, other, quiet in ((before, after, first), (after, before, second)):
        for number in range(SEEDS):
            read = partial(_shaken, network, other, derived_seed(seed, "noise", str(number)))
            loud = _run(network, read, batches)
            yield _Noise(_moved(quiet, loud, network), quiet.grams, loud.grams)
            advance()


def _shaken(network: Network, other: Network, seed: int, name: str) -> Tensor:
    """A tensor in float64 with a random relative error wherever the other network holds another number."""
    tensor: Tensor = network.source.read(name)
    if not tensor.is_floating_point():
        return tensor
    values: Tensor = tensor.double()
    roundoff = torch.finfo(_coarser(network, other, name)).eps / 2
    error = roundoff * (2 * torch.rand(values.shape, generator=stream(seed, name), dtype=torch.float64) - 1)
    counterpart = other.stored_name(name)
    info = other.source.tensors.get(counterpart)
    if info is not None and info.shape == tuple(values.shape):
        error *= values != other.source.read(counterpart).double()  # the same number was not rounded again
    return values * (1 + error)


def _first(
    before: Network, after: Network, first: Grams, second: Grams, noise: Sequence[_Noise]
) -> tuple[str, float, float]:
    """The first edge where the networks differ by more than rounding: its name, by how much, and what is explained."""
    try:
        here, there = comparable(before), comparable(after)
    except InvalidModel:  # without weights its code cannot be followed; then only blocks are compared
        here = there = {f"{block.name}:output": False for block in before.blocks}
    found: list[tuple[str, float, float]] = []
    for name in first.names():
        if name in here and name in there:
            by = first.change(second, name, (here[name], there[name]))
            rounding = [
                one.quiet.change(one.loud, name, (centred[name], centred[name]))
                for one, centred in zip(noise, [here] * SEEDS + [there] * SEEDS, strict=True)
            ]
            found.append((name, by, max(LARGEST_CHANGE, FACTOR * max(rounding))))
    blocks = {f"{block.name}:output" for block in before.blocks}
    start = 0
    for index, (name, by, most) in enumerate(found):
        if name in blocks:  # what a block still returns alike was not different before, whatever its inside looks like
            if by > most:
                break
            start = index + 1
    return next((edge for edge in found[start:] if edge[1] > edge[2]), ("", 0.0, 0.0))
