"""Importance from perturbed gradients: against the exact Hessian, and where a constant direction sees nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pennyweight import formats
from pennyweight.errors import InvalidMethod
from pennyweight.methods.recovery import AverageHessian, BlockWise
from pennyweight.methods.recovery.average_hessian import slope, weighed_error
from pennyweight.methods.recovery.block_wise import relative_error
from pennyweight.piece import Piece, Weights

SIZE, WORDS, BATCHES = 8, 12, 6


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEAD, INNER = drawn(WORDS, SIZE, seed=1), drawn(SIZE, SIZE, seed=2) / SIZE**0.5


def piece_of(size: int = SIZE, *, norm: bool = False, blind: int = 0) -> tuple[Piece, Tensor]:
    """A linear block; behind it a layer, or a norm, that may not see the last channels."""
    weight = drawn(size, 96, seed=3) / 96**0.5
    inputs = [drawn(2, 50, 96, seed=10 + i) for i in range(BATCHES)]

    def onward(hidden: Tensor) -> Tensor:
        seen = hidden * (torch.arange(size) < size - blind)
        return F.layer_norm(seen, (size,)) if norm else seen + torch.tanh(seen @ INNER[:size, :size].T)

    def run(weights: Weights, batch: int) -> Tensor:
        return inputs[batch] @ weights["w"].T

    def logits(hidden: Tensor) -> Tensor:
        return hidden @ HEAD[:, :size].T

    return Piece(BATCHES, 2, run, lambda batch: inputs[batch] @ weight.T, logits, onward), weight


def test_the_difference_of_gradients_is_the_hessian_times_the_direction() -> None:
    piece, _ = piece_of()
    out = piece.target(0)[:1, :1]
    assert piece.onward is not None
    assert piece.logits is not None
    onward, logits = piece.onward, piece.logits

    def divergence(moved: Tensor) -> Tensor:
        p, q = ((logits(onward(x.reshape(1, 1, -1))) / 20).log_softmax(-1) for x in (out, moved))
        return (p.exp() * (p - q)).sum()

    hessian = torch.autograd.functional.hessian(divergence, out.flatten())
    direction = 0.01 * torch.sign(drawn(SIZE, seed=5))
    ends = [slope(piece, out, out + way * direction, 20.0) for way in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]).flatten(), 2 * hessian @ direction, rtol=0.01, atol=1e-7)


def test_a_constant_is_what_a_norm_takes_away() -> None:
    piece, _ = piece_of(norm=True)
    out, sizes = piece.target(0), []
    for direction in (torch.ones(SIZE), torch.sign(drawn(*out.shape, seed=6))):
        ends = [slope(piece, out, out + 0.01 * way * direction, 20.0) for way in (1, -1)]
        sizes.append(float((ends[0] - ends[1]).norm()))
    assert sizes[0] < 1e-3 * sizes[1]


def test_channels_that_nothing_reads_have_no_importance() -> None:
    piece, _ = piece_of(blind=3)
    importance = AverageHessian().importance(piece, 0)
    assert importance.shape == (SIZE,)
    assert float(importance.mean()) == pytest.approx(1)
    assert torch.equal(importance[-3:], torch.zeros(3))
    assert bool((importance[:-3] > 0).all())
    by_position = AverageHessian(positions=True).importance(piece, 0)
    assert by_position.shape == (50, SIZE)
    torch.testing.assert_close(by_position.mean(0), importance)
    assert not torch.equal(importance, AverageHessian(signs=False).importance(piece, 0))


def test_equal_importance_is_the_error_of_block_wise() -> None:
    piece, weight = piece_of()
    values = {"w": weight + 0.1 * drawn(SIZE, 96, seed=7)}
    with torch.no_grad():
        weighed = weighed_error(piece, values, 0, importance=torch.ones(SIZE))
        assert float(weighed) == pytest.approx(float(relative_error(piece, values, 0)))


def test_a_piece_whose_network_is_not_known_is_refused() -> None:
    piece, weight = piece_of()
    part = formats.parse("int2 g32 asym").store(weight)
    with pytest.raises(InvalidMethod, match="nothing is known"):
        AverageHessian().recover(
            replace(piece, onward=None), {"w": part}, {"w": weight}, seed=0, advance=lambda: None
        )  # fmt: skip
    for wrong in ({"samples": 0}, {"temperature": 0.0}, {"size": 0.0}):
        with pytest.raises(InvalidMethod):
            AverageHessian(**wrong)  # type: ignore[arg-type]


def test_importance_is_of_the_reference_and_recovery_stands_beside_block_wise() -> None:
    piece, weight = piece_of()
    part = formats.parse("int2 g32 asym").store(weight, search=False)
    found = {}
    for method in (AverageHessian(), BlockWise()):
        parts, record = method.recover(piece, {"w": part}, {"w": weight}, seed=0, advance=lambda: None)
        assert record["kept"]
        found[method.name] = parts["w"].format.decode(parts["w"].tensors, (SIZE, 96))
    assert not torch.equal(found["average_hessian"], found["block_wise"])
