"""Every method of recovery: formats stay, text that it did not see gains, and it comes out the same twice."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pennyweight import catalogue, formats
from pennyweight.errors import InvalidFormat, InvalidMethod
from pennyweight.formats import Part, Scalar
from pennyweight.methods.recovery.learning import Learned
from pennyweight.piece import Piece, Weights

KINDS = [pytest.param(kind, id=kind.name) for kind in catalogue.classes("recovery")]
LEARNERS = [pytest.param(kind, id=kind.name) for kind in catalogue.classes("recovery") if kind.learns]
LABELS = [
    "int2 g32 asym",
    "int2 g32 sym",
    "int3 row sym",
    "int2 b32 asym",
    "int2 g32 affine",
    "int2 g32 asym bfloat16",
    "vector4 32 g48",
    "ternary g32",
    "binary2 g32",
]
OUT, IN, TOKENS, BATCHES = 24, 96, 400, 6


def nothing() -> None:
    """Nobody watches."""


def layer(seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """A weight, and inputs whose directions matter unequally."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(IN, IN, generator=generator) / IN**0.5 * torch.logspace(0, -2, IN)
    inputs = [torch.randn(1, TOKENS, IN, generator=generator) @ mixing for _ in range(BATCHES)]
    return torch.randn(OUT, IN, generator=generator), inputs


def piece_of(
    weight: Tensor, inputs: list[Tensor], other: Tensor | None = None, label: str = "int2 g32 asym"
) -> Piece:  # fmt: skip
    """One linear layer as a network; the batches held out may want another weight than the others."""

    def run(weights: Weights, batch: int) -> Tensor:
        return inputs[batch] @ weights["w"].T

    def target(batch: int) -> Tensor:
        return inputs[batch] @ (weight if other is None or batch < BATCHES - 2 else other).T

    def run_with(weights: Weights, batch: int, added: Weights) -> Tensor:
        return run(weights, batch) + added["w"]

    def reads(_weights: Weights | None, batch: int, _names: Collection[str]) -> Weights:
        return {"w": inputs[batch][0]}

    def store(_name: str, weight: Tensor, gram: Tensor) -> Part:
        return formats.parse(label).store(weight, importance=gram.diagonal())

    return Piece(BATCHES, 2, run, target, lambda hidden: hidden, lambda hidden: hidden, run_with, reads, store)


def stored(weight: Tensor, label: str) -> Part:
    return formats.parse(label).store(weight, search=False)


def recover(kind: Any, label: str, piece: Piece, weight: Tensor, **more: Any) -> tuple[Part, Any]:
    method = kind(**({"steps": 12, "scale_rate": 0.02, **more} if kind.learns else more))
    parts, record = method.recover(piece, {"w": stored(weight, label)}, {"w": weight}, seed=3, advance=nothing)
    return parts["w"], record


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_gains_on_what_it_did_not_see(kind: type[Any], label: str) -> None:
    weight, inputs = layer()
    part, record = recover(kind, label, piece_of(weight, inputs, label=label), weight)
    assert record["kept"]
    assert record["after"] < 0.98 * record["before"]
    format = formats.parse(label)
    assert part.format == format
    fields = {field.name: field for field in format.fields((OUT, IN))}
    assert part.tensors.keys() == fields.keys()
    for name, tensor in part.tensors.items():
        assert tuple(tensor.shape) == fields[name].shape
        assert fields[name].levels is None or int(tensor.max()) < (fields[name].levels or 0)


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_same_bits(kind: type[Any]) -> None:
    weight, inputs = layer()
    first, second = (recover(kind, "int2 g32 asym", piece_of(weight, inputs), weight)[0] for _ in range(2))
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_change_nothing(kind: type[Any]) -> None:
    weight, inputs = layer()
    none = {"steps": 0} if kind.learns else {"rounds": 0}
    part, record = recover(kind, "int2 g32 asym", piece_of(weight, inputs), weight, **none)
    assert not record["kept"]
    assert record["before"] == record["after"]
    assert all(
        torch.equal(part.tensors[name], tensor) for name, tensor in stored(weight, "int2 g32 asym").tensors.items()
    )


@pytest.mark.parametrize("kind", LEARNERS)
def test_without_a_rate_every_code_stays(kind: type[Any]) -> None:
    """The second phase of EfficientQAT: scales alone."""
    weight, inputs = layer()
    before = stored(weight, "int2 g32 affine")
    part, record = recover(kind, "int2 g32 affine", piece_of(weight, inputs), weight, rate=0, scale_rate=0.004)
    assert record["kept"]
    assert torch.equal(part.tensors["codes"], before.tensors["codes"])
    assert not torch.equal(part.tensors["scale"], before.tensors["scale"])
    assert not torch.equal(part.tensors["offset"], before.tensors["offset"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_gain_elsewhere_is_not_kept(kind: type[Any]) -> None:
    weight, inputs = layer()
    before = stored(weight, "int2 g32 asym")
    piece = piece_of(weight, inputs, other=before.format.decode(before.tensors, (OUT, IN)))
    part, record = recover(kind, "int2 g32 asym", piece, weight)
    assert not kind.learns or sum(record["course"][-4:]) < sum(record["course"][:4]), "it did learn"
    assert record["after"] > record["before"]
    assert not record["kept"]
    assert all(
        torch.equal(part.tensors[name], tensor) for name, tensor in stored(weight, "int2 g32 asym").tensors.items()
    )


@pytest.mark.parametrize("kind", LEARNERS)
def test_batches_held_out_are_only_measured(kind: type[Any]) -> None:
    weight, inputs = layer()
    piece, trained = piece_of(weight, inputs), set[int]()

    def run(weights: Weights, batch: int) -> Tensor:
        if torch.is_grad_enabled():
            trained.add(batch)
        return piece.run(weights, batch)

    def run_with(weights: Weights, batch: int, added: Weights) -> Tensor:
        return run(weights, batch) + added["w"]

    recover(kind, "int2 g32 asym", replace(piece, run=run, run_with=run_with), weight)
    assert trained == set(range(BATCHES - 2))


@pytest.mark.parametrize("kind", LEARNERS)
def test_formats_without_parameters_to_learn_are_refused(kind: type[Any]) -> None:
    weight, inputs = layer()
    with pytest.raises(InvalidFormat, match="no parameters that can be learnt"):
        recover(kind, "nf4 g32", piece_of(weight, inputs), weight)


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("wrong", [{"steps": -1}, {"batches": 0}, {"rate": -0.1}, {"scale_rate": -1.0}])
def test_impossible_schedules_are_refused(kind: type[Any], wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidMethod):
        kind(**wrong)


@pytest.mark.parametrize("label", LABELS)
def test_learning_starts_from_what_is_stored_and_ends_with_what_was_run(label: str) -> None:
    weight, _ = layer()
    part = stored(weight, label)
    learned = Learned.of(part, weight)
    assert torch.equal(learned.value(), part.format.decode(part.tensors, (OUT, IN)))
    generator = torch.Generator().manual_seed(1)
    learned.latent += 0.7 * torch.randn(OUT, IN, generator=generator)
    learned.growth += 0.05 * torch.randn(learned.growth.shape, generator=generator)
    after = learned.now()
    assert torch.equal(learned.value(), after.format.decode(after.tensors, (OUT, IN)))
    assert torch.equal(after.tensors["codes"], part.tensors["codes"]) is not isinstance(part.format, Scalar)
    assert not torch.equal(after.tensors["scale"], part.tensors["scale"])


@pytest.mark.parametrize("label", ["int2 g32 affine float32", "int3 g32 asym float32", "int2 b32 asym float32"])
def test_the_gradient_of_parameters_is_exact(label: str) -> None:
    """Against differences, with the codes held: what the value's derivative is almost everywhere."""
    weight, _ = layer()
    format = formats.parse(label)
    assert isinstance(format, Scalar)
    learned = Learned.of(format.store(weight, search=False), weight)
    pull = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))
    learned.growth.requires_grad_()
    (learned.value() * pull).sum().backward()
    slope, codes = learned.growth.grad, learned.now().tensors["codes"]
    assert slope is not None
    for place in [(0, 0, 0), (-1, -1, -1), (0, -1, 0)]:
        values = []
        for change in (1e-3, -1e-3):
            moved = learned.start.clone()
            moved[place] += change * learned.pace[place[1:]]
            part = learned.fitted.refitted(moved).part(codes)
            values.append(float((format.decode(part.tensors, (OUT, IN)) * pull).double().sum()))
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(slope[place]), rel=2e-3, abs=1e-3)
