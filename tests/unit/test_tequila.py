"""Dead weights as a bias: its value and its gradient by hand, no trace of it in what is stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pennyweight import formats
from pennyweight.errors import InvalidMethod
from pennyweight.formats import Part
from pennyweight.methods.recovery import EndToEnd, Tequila
from pennyweight.methods.recovery.learning import Learned
from pennyweight.piece import Piece, Weights

OUT, IN, BATCHES = 12, 64, 6


def layer() -> tuple[Tensor, Part, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator) / IN**0.5
    inputs = [0.3 + torch.randn(1, 200, IN, generator=generator) for _ in range(BATCHES)]
    return weight, formats.parse("ternary g32 float32").store(weight, search=False), inputs


def piece_of(weight: Tensor, inputs: list[Tensor], seen: list[Tensor] | None = None) -> Piece:
    def run_with(weights: Weights, batch: int, added: Weights) -> Tensor:
        if seen is not None:
            seen.append(added["w"].detach().clone())
        return inputs[batch] @ weights["w"].T + added["w"]

    return Piece(BATCHES, 2, lambda weights, batch: inputs[batch] @ weights["w"].T,
                 lambda batch: inputs[batch] @ weight.T, lambda hidden: hidden, run_with=run_with)  # fmt: skip


def recovered(method: EndToEnd | Tequila, seen: list[Tensor] | None = None) -> tuple[Part, dict[str, object]]:
    weight, part, inputs = layer()
    piece = piece_of(weight, inputs, seen)
    parts, record = method.recover(piece, {"w": part}, {"w": weight}, seed=1, advance=lambda: None)
    return parts["w"], record


def test_the_bias_is_the_sum_of_dead_weights_and_its_gradient_reaches_them_alone() -> None:
    weight, part, inputs = layer()
    learned = Learned.of(part, weight)
    zero = part.tensors["codes"] == 1
    assert 0.2 < float(zero.float().mean()) < 0.4, "31 in 100 normal weights are dead"
    torch.testing.assert_close(
        learned.dead(), (weight * zero).sum(1), atol=2e-3, rtol=0
    )  # those at the very edge start a little inside
    learned.latent.requires_grad_()
    strength, pull = 1e-3, torch.randn(200, OUT, generator=torch.Generator().manual_seed(4))
    y = inputs[0][0] @ learned.value().T
    (y * pull).sum().backward()
    assert learned.latent.grad is not None
    plain = learned.latent.grad.clone()
    learned.latent.grad = None
    ((inputs[0][0] @ learned.value().T + strength * learned.dead()) * pull).sum().backward()
    scale = part.tensors["scale"].repeat_interleave(32, 1)
    torch.testing.assert_close(
        learned.latent.grad - plain, strength * pull.sum(0)[:, None] * scale * zero, atol=2e-5, rtol=1e-3
    )


def test_a_weight_that_died_in_training_counts_as_it_is_hidden() -> None:
    weight, part, _ = layer()
    learned = Learned.of(part, weight)
    row, column = torch.nonzero(part.tensors["codes"] == 2)[0].tolist()
    scale = float(part.tensors["scale"][row, column // 32])
    before = learned.dead()
    learned.latent[row, column] = -0.7
    after = learned.dead()
    assert int(learned.now().tensors["codes"][row, column]) == 1
    assert float(after[row] - before[row]) == pytest.approx(0.3 * scale, rel=1e-4)


def test_without_strength_it_is_end_to_end_to_the_bit() -> None:
    (one, first), (two, second) = recovered(EndToEnd(steps=12, rate=0.005)), recovered(Tequila(steps=12, strength=0.0))
    assert first["kept"]
    assert first["after"] == second["after"]
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_the_bias_fades_and_nothing_of_it_is_measured() -> None:
    weight, part, inputs = layer()
    seen: list[Tensor] = []
    stored, record = recovered(Tequila(steps=20, strength=0.1), seen)
    sizes = [float(vector.norm()) for vector in seen]
    assert len(seen) == 20, "once a step, and never where batches are measured"
    assert sizes[-1] < 0.2 * sizes[5]
    assert stored.tensors.keys() == part.tensors.keys()
    values = stored.format.decode(stored.tensors, (OUT, IN))
    losses = []
    for x in inputs[-2:]:
        p, q = (x[0] @ weight.T).log_softmax(-1), (x[0] @ values.T).log_softmax(-1)
        losses.append(float((p.exp() * (p - q)).sum(-1).mean()))
    assert record["after"] == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_a_piece_that_cannot_add_is_refused() -> None:
    weight, part, inputs = layer()
    piece = replace(piece_of(weight, inputs), run_with=None)
    with pytest.raises(InvalidMethod, match="nothing can be added"):
        Tequila().recover(piece, {"w": part}, {"w": weight}, seed=1, advance=lambda: None)
    for wrong in ({"strength": -1.0}, {"fade": 0.0}, {"fade": 1.5}):
        with pytest.raises(InvalidMethod):
            Tequila(**wrong)
