"""Fold a change of basis into the weights: the transform on the side that writes, its inverse on the side that reads.

    y = T x + c          W_writer' = T W_writer,  b_writer' = T b_writer + c
    W_reader' = W_reader T⁻¹,  b_reader' = b_reader - W_reader' c

so that W_reader' y + b_reader' = W_reader x + b_reader. A gain stored as w and used as 1 + w is scaled as it is used.
All arithmetic is float64; a tensor is rounded once, to the type it is stored in. Nothing is computed before a tensor is
read: a rewritten model is a source like any other, and takes no more memory than the one it was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pennyweight.errors import InvalidTransform, InvalidWeights
from pennyweight.network.finding.symmetry import ORTHOGONAL, PERMUTATION, POSITIVE, Side, Symmetry
from pennyweight.network.finding.watch import Port
from pennyweight.network.sources.source import DTYPES, Derived, Source, TensorInfo
from pennyweight.numerics.hashing import of_bytes, of_value

EXACT = 1e-9  # how far from orthogonal, or from keeping the mean, a matrix in float64 may be
STORED = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """One invertible change of the channels of an edge: y = T x + shift; exactly one of the first three is given.

    Args:
        scale: T is diagonal with these entries `[size]`, none of them zero.
        order: y_i = x_order_i `[size]`.
        matrix: T is block-diagonal with these blocks `[blocks, b, b]`.
        shift: c `[size]`, or None.
    """

    scale: Float[Tensor, " size"] | None = None
    order: Int[Tensor, " size"] | None = None
    matrix: Float[Tensor, "blocks b b"] | None = None
    shift: Float[Tensor, " size"] | None = None

    @property
    def size(self) -> int:
        """Channels it acts on."""
        if self.matrix is not None:
            return self.matrix.shape[0] * self.matrix.shape[-1]
        return len(self.scale if self.scale is not None else self.order)  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        """Hash of its numbers."""
        parts = {name: getattr(self, name) for name in ("scale", "order", "matrix", "shift")}
        held = {name: part.double().contiguous() for name, part in parts.items() if part is not None}
        return of_value({name: [list(v.shape), of_bytes(v.numpy().tobytes())] for name, v in held.items()})

    @cached_property
    def contragredient(self) -> Transform:
        """What acts on the side that reads: T⁻ᵀ."""
        if self.scale is not None:
            return Transform(scale=1 / self.scale.double())
        if self.order is not None:
            return Transform(order=self.order)
        assert self.matrix is not None
        return Transform(matrix=torch.linalg.inv(self.matrix.double()).mT.contiguous())


@dataclass(frozen=True, eq=False)
class Fold:
    """A transform on one of a network's symmetries; refused when the edge does not let it through.

    Raises:
        InvalidTransform: names the edge.
    """

    symmetry: Symmetry
    transform: Transform

    def __post_init__(self) -> None:
        check(self.symmetry, self.transform)


def check(symmetry: Symmetry, transform: Transform) -> None:
    """Refuse a transform that this edge does not let through.

    Raises:
        InvalidTransform: another size, no inverse, a stronger group than the edge admits, or a shift nothing can hold.
    """

    def refuse(happened: str, expected: str, mend: str = "choose a transform of the group this edge admits") -> None:
        raise InvalidTransform(happened, expected=expected, mend=mend, site=symmetry.name)

    given = [name for name in ("scale", "order", "matrix") if getattr(transform, name) is not None]
    if len(given) != 1:
        refuse(f"{len(given)} of scale, order and matrix are given", "exactly one of them")
    if transform.size != symmetry.size:
        refuse(f"a transform of {transform.size} channels", f"{symmetry.size} channels")
    group = symmetry.group
    if transform.scale is not None:
        scale = transform.scale
        if group in (ORTHOGONAL, PERMUTATION):
            refuse("a diagonal transform", f"one of the group {group}: what lies between does not commute with scales")
        bad = (scale == 0) | ~torch.isfinite(scale)
        if bool(bad.any()):
            channel = int(bad.nonzero()[0])
            refuse(
                f"the scale of channel {channel} is {float(scale[channel]):g}: it has no inverse",
                "finite scales other than zero", "the channel is dead; leave its scale at 1, or remove it",
            )  # fmt: skip
        if group == POSITIVE and bool((scale < 0).any()):
            refuse("a negative scale", "positive scales: a ReLU lies between")
    if transform.order is not None:
        if sorted(transform.order.tolist()) != list(range(symmetry.size)):
            refuse("the order is not a permutation", f"every number from 0 to {symmetry.size - 1} once")
        if group not in (PERMUTATION, ORTHOGONAL) and symmetry.block < symmetry.size:
            refuse("a permutation", f"one of the group {group}: other tensors would have to be reordered too")
    if transform.matrix is not None:
        _check_matrix(symmetry, transform.matrix.double(), refuse)
    if transform.shift is not None and bool((transform.shift != 0).any()):
        if not symmetry.shift:
            refuse("a shift", "none: what lies between does not let a constant through")
        if not any(s.port.kind == "bias" for s in symmetry.writers):
            refuse("a shift, and the side that writes has no bias", "a bias to hold it", "scale without shifting")
        without = [s.port.parameter for s in symmetry.readers if s.bias is None]
        if without:
            refuse(f"a shift, and {without[0]} has no bias behind it", "a bias to undo it", "scale without shifting")


def _check_matrix(symmetry: Symmetry, matrix: Tensor, refuse: Any) -> None:
    block = matrix.shape[-1]
    if matrix.dim() != 3 or matrix.shape[-2] != block:
        refuse(f"a matrix of shape {list(matrix.shape)}", "square blocks [blocks, b, b]")
    if symmetry.group not in (ORTHOGONAL, "invertible"):
        refuse("a matrix that mixes channels", f"one of the group {symmetry.group}")
    if symmetry.block % block:
        refuse(f"blocks of {block} channels", f"blocks that divide {symmetry.block}, where the heads end")
    if not bool(torch.isfinite(matrix).all()):
        refuse("a matrix that is not finite", "finite numbers")
    if symmetry.group == ORTHOGONAL:
        off = float((matrix @ matrix.mT - torch.eye(block, dtype=torch.float64)).abs().max())
        if off > EXACT:
            refuse(f"a matrix that is {off:.1e} from orthogonal", "an orthogonal one: norms only keep lengths")
        if symmetry.fixes_mean:
            off = float((matrix.sum(-1).abs() - 1).abs().max() + matrix.sum(-1).std(correction=0))
            if block != symmetry.size or off > 1e-6:
                refuse("a rotation that moves the mean", "one that keeps the vector of ones: a LayerNorm subtracts it",
                       "use numerics.hadamard.keeping_mean, or rewrite LayerNorm to RMSNorm first")  # fmt: skip
    elif float(torch.linalg.cond(matrix).max()) > 1e8:
        refuse("a matrix that is nearly singular", "a condition number below 1e8")


class Rewritten(Derived):
    """Another source with transforms folded into its tensors as they are read.

    Args:
        source: where the weights are.
        folds: in the order in which they apply.

    Raises:
        InvalidTransform: a rotation across a norm that still holds its gain; the norm is named.
        InvalidWeights: a folded value is beyond what the stored type holds (when it is read).
    """

    def __init__(self, source: Source, folds: Sequence[Fold]) -> None:
        self.source, self.folds = source, tuple(folds)
        self._edits: dict[str, list[tuple[int, Side]]] = {}
        self._shifts: dict[str, list[tuple[int, Side]]] = {}
        for step, fold in enumerate(self.folds):
            done: set[tuple[str, int, tuple[int, ...] | None]] = set()
            for side in fold.symmetry.sides:
                place = (side.port.parameter, side.port.dim, side.port.channels)
                if place in done:  # a tied tensor writes and reads: an orthogonal transform acts on it once
                    continue
                done.add(place)
                owner = side.port.parameter.rpartition(".")[0]
                if fold.transform.matrix is not None and side.port.kind == "gain" and owner in fold.symmetry.norms:
                    continue  # a norm without gain commutes with rotations; its bias turns like any other vector
                self._edits.setdefault(side.port.parameter, []).append((step, side))
                if side.bias is not None and side.inverse and fold.transform.shift is not None:
                    self._shifts.setdefault(side.bias.parameter, []).append((step, side))
        for step, fold in enumerate(self.folds):
            if fold.transform.matrix is not None and fold.symmetry.norms:
                self._check_norms(step, fold)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Those of the source; a tensor of codes becomes float32 when something is folded into it."""
        return {name: self._info(name, info) for name, info in self.source.tensors.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of the source's own and of every transform."""
        parts = [[fold.symmetry.name, fold.transform.fingerprint] for fold in self.folds]
        return of_value(["rewritten", self.source.fingerprint, parts])

    @property
    def description(self) -> str:
        """How many edges were changed, and of what."""
        return f"{len(self.folds)} changes of basis folded in; {self.source.description}"

    def read(self, name: str) -> Tensor:
        """A tensor with everything folded in, in the type it is stored in (float32 where codes are stored)."""
        if name not in self._edits and name not in self._shifts:
            return self.source.read(name)
        dtype = STORED[self._info(name, self.source.tensors[name]).dtype]
        exact = self.exact(name)
        if float(exact.abs().max()) > torch.finfo(dtype).max:
            raise InvalidWeights(
                f"a folded value of {float(exact.abs().max()):.3g} is beyond what {str(dtype)[6:]} holds",
                expected=f"values below {torch.finfo(dtype).max:.3g}",
                mend="store the model in bfloat16 or float32, or limit the scales", site=name,
            )  # fmt: skip
        return exact.to(dtype)

    def exact(self, name: str, until: int | None = None) -> Tensor:
        """The tensor in float64 after the folds before `until`, not rounded."""
        tensor = exact(self.source, name)
        edits = [(step, False, side) for step, side in self._edits.get(name, [])]
        edits += [(step, True, side) for step, side in self._shifts.get(name, [])]
        for step, is_shift, side in sorted(edits, key=lambda edit: edit[:2]):
            if until is not None and step >= until:
                break
            transform = self.folds[step].transform
            if is_shift:
                weight = self.exact(side.port.parameter, step + 1)
                tensor = tensor - _through(weight, side, _spread(transform.shift, side))  # type: ignore[arg-type]
            else:
                tensor = acted(tensor, side, transform)
        return tensor

    def _check_norms(self, step: int, fold: Fold) -> None:
        norms = fold.symmetry.norms
        for side in fold.symmetry.sides:
            port, owner = side.port, side.port.parameter.rpartition(".")[0]
            if owner not in norms or port.kind != "gain":
                continue
            if float((self.exact(port.parameter, step) + port.offset - 1).abs().max()) > EXACT:
                raise InvalidTransform(
                    f"the gain of {owner} is not folded away", site=fold.symmetry.name,
                    expected="norms without gain: a rotation does not commute with scales",
                    mend="rewrite with fold_norms first; a norm whose output is added to the residual cannot be folded",
                )  # fmt: skip

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        if info.dtype in STORED or (name not in self._edits and name not in self._shifts):
            return info
        count = 1
        for length in info.shape:
            count *= length
        return replace(info, dtype="float32", bytes=4 * count)


def exact(source: Source, name: str) -> Tensor:
    """A tensor in float64; of a rewritten source, before it is rounded to the type it is stored in."""
    unrounded = getattr(source, "exact", None)
    return source.read(name).double() if unrounded is None else unrounded(name)


def rows(tensor: Tensor, side: Side) -> Float[Tensor, "rows channels"]:
    """A stored tensor with the channels of a side last, in float64; of a layer's weight, one row an output."""
    return _moved(tensor.double(), side.port, side.inverse)


def replaced_rows(tensor: Tensor, side: Side, values: Float[Tensor, "rows channels"]) -> Tensor:
    """The stored tensor with what `rows` gave replaced."""
    return _put(tensor, side.port, side.inverse, values)


def activation(side: Side) -> str:
    """The name statistics go by: what a reader reads, or what a writer writes."""
    return f"{side.port.parameter.removesuffix('.weight')}:{'input' if side.inverse else 'output'}"


def written(side: Side) -> str:
    """The name of the statistics of what a layer or norm writes; in a pair both sides do."""
    return f"{side.port.parameter.removesuffix('.weight')}:output"


def channel_values(tensor: Tensor, side: Side, size: int, reduce: str = "amax") -> Float[Tensor, " size"]:
    """The largest |w| (or `sum` of |w|) of a tensor for every channel of a transform; zero where it has no part."""
    moved = rows(tensor, side)
    values = moved.abs().flatten(0, -2).amax(0) if reduce == "amax" else moved.abs().flatten(0, -2).sum(0)
    touched = side.index >= 0
    out = torch.zeros(size, dtype=torch.float64)
    return out.scatter_reduce(0, side.index[touched], values[touched], reduce if reduce == "amax" else "sum")


def _moved(tensor: Tensor, port: Port, inverse: bool) -> Tensor:
    """The tensor with the port's channels in the last dimension, one row for everything else."""
    if port.groups > 1 and inverse:  # [out, in / groups, ...]: input j belongs to the rows of its own group
        out, inner = tensor.shape[:2]
        grouped = tensor.reshape(port.groups, out // port.groups, inner, -1)
        moved = grouped.permute(1, 3, 0, 2).reshape(-1, port.groups * inner)
    else:
        moved = tensor.movedim(port.dim, -1).reshape(-1, tensor.shape[port.dim])
    return moved if port.channels is None else moved[:, list(port.channels)]


def _put(tensor: Tensor, port: Port, inverse: bool, values: Tensor) -> Tensor:
    """The tensor with what `_moved` gave replaced."""
    if port.groups > 1 and inverse:
        out, inner = tensor.shape[:2]
        back = values.reshape(out // port.groups, -1, port.groups, inner).permute(2, 0, 3, 1)
        return back.reshape(tensor.shape)
    moved = tensor.movedim(port.dim, -1).clone()
    flat = moved.reshape(-1, tensor.shape[port.dim])
    if port.channels is None:
        flat = values
    else:
        flat[:, list(port.channels)] = values
    return flat.reshape(moved.shape).movedim(-1, port.dim).contiguous()


def acted(tensor: Tensor, side: Side, transform: Transform) -> Tensor:
    """A stored tensor after a transform, its inverse transposed on a side that reads; biases behind it stay."""
    port = side.port
    acting = transform.contragredient if side.inverse else transform
    values = _moved(tensor, port, side.inverse) + (port.offset if port.kind == "gain" else 0.0)
    touched = (side.index >= 0).nonzero().flatten()
    index = side.index[touched]
    part = values[:, touched]
    if acting.scale is not None:
        part = part * acting.scale.double()[index]
    elif acting.order is not None:
        places = index.argsort(stable=True).reshape(len(acting.order), -1)  # every channel's own columns
        moved = torch.empty_like(part)
        moved[:, places.flatten()] = part[:, places[acting.order].flatten()]
        part = moved
    else:
        assert acting.matrix is not None
        block = acting.matrix.shape[-1]
        blocks = acting.matrix.double()[index[::block] // block]
        split = part.reshape(len(part), -1, block).transpose(0, 1)  # [blocks, rows, b]
        part = (split @ blocks.mT).transpose(0, 1).reshape(part.shape)
    if transform.shift is not None and port.kind == "bias" and not side.inverse:
        part = part + _spread(transform.shift, side)[touched]
    values = values.clone()
    values[:, touched] = part
    return _put(tensor, port, side.inverse, values - (port.offset if port.kind == "gain" else 0.0))


def _spread(shift: Tensor, side: Side) -> Tensor:
    """The shift of every channel of a port."""
    return torch.where(side.index >= 0, shift.double()[side.index.clamp(min=0)], 0.0)


def _through(weight: Tensor, side: Side, shift: Tensor) -> Tensor:
    """What a constant input comes to at the outputs of a linear layer."""
    moved = weight.movedim(side.port.dim, -1)
    if side.port.channels is not None:
        moved = moved[..., list(side.port.channels)]
    return moved @ shift
