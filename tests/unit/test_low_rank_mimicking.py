"""Principal directions of a block's output, and the error in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pennyweight import formats
from pennyweight.errors import InvalidMethod
from pennyweight.formats.residual_binary import BasisScales
from pennyweight.methods.recovery import BlockWise, LowRankMimicking
from pennyweight.methods.recovery.block_wise import relative_error
from pennyweight.methods.recovery.low_rank_mimicking import mimicking_error
from pennyweight.piece import Piece

SIZE, IN, BATCHES = 16, 96, 6


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def piece_of() -> tuple[Piece, Tensor]:
    """A linear block whose outputs vary in some directions much more than in others."""
    turned = torch.linalg.qr(drawn(SIZE, SIZE, seed=1)).Q
    weight = turned @ (torch.logspace(0, -2, SIZE)[:, None] * drawn(SIZE, IN, seed=2))
    mixing = drawn(IN, IN, seed=3) / IN**0.5 * torch.logspace(0, -2, IN)
    inputs = [drawn(2, 200, IN, seed=10 + i) @ mixing for i in range(BATCHES)]
    return Piece(BATCHES, 2, lambda values, batch: inputs[batch] @ values["w"].T,
                 lambda batch: inputs[batch] @ weight.T), weight  # fmt: skip


def test_the_basis_is_orthonormal_and_holds_the_most_variance() -> None:
    piece, _ = piece_of()
    basis = LowRankMimicking().basis(piece)
    assert basis.shape == (SIZE, SIZE // 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4), atol=1e-5, rtol=0)
    rows = piece.target(0).flatten(0, 1)
    rows = rows - rows.mean(0)
    kept = (rows @ basis).square().sum(0)
    assert torch.equal(kept.sort(descending=True).indices, torch.arange(4))
    singular = torch.linalg.svdvals(rows)
    torch.testing.assert_close(kept, singular[:4].square(), rtol=1e-4, atol=0)
    assert LowRankMimicking(rank=0.01).basis(piece).shape == (SIZE, 2)


def test_projections_are_no_larger_than_what_is_projected_and_the_whole_basis_is_the_whole_error() -> None:
    piece, weight = piece_of()
    values = {"w": weight + 0.05 * drawn(SIZE, IN, seed=7)}
    with torch.no_grad():
        plain = float(relative_error(piece, values, 0))
        whole = LowRankMimicking(rank=1.0).basis(piece)
        assert float(mimicking_error(piece, values, 0, basis=whole, strength=1.0)) == pytest.approx(2 * plain, rel=1e-4)
        assert float(mimicking_error(piece, values, 0, basis=whole, strength=0.0)) == pytest.approx(plain, rel=1e-6)
        change, basis = piece.run(values, 0) - piece.target(0), LowRankMimicking().basis(piece)
        assert float((change @ basis).square().sum()) < float(change.square().sum())


def test_without_strength_it_is_block_wise_to_the_bit_and_with_it_principal_directions_gain() -> None:
    piece, weight = piece_of()
    part = formats.parse("binary2 row").store(weight, search=False)
    assert isinstance(formats.parse("binary2 row").fit(weight), BasisScales)
    found = {}
    for key, method in (("plain", BlockWise(rate=0.001)),
                        ("none", LowRankMimicking(rate=0.001, strength=0.0)),
                        ("strong", LowRankMimicking(rate=0.001, strength=20.0))):  # fmt: skip
        parts, record = method.recover(piece, {"w": part}, {"w": weight}, seed=0, advance=lambda: None)
        assert record["kept"]
        found[key] = parts["w"]
    assert all(torch.equal(found["plain"].tensors[n], found["none"].tensors[n]) for n in part.tensors)
    basis = LowRankMimicking().basis(piece)
    errors = {}
    for key, one in found.items():
        values = {"w": one.format.decode(one.tensors, (SIZE, IN))}
        changes = [(piece.run(values, batch) - piece.target(batch)) @ basis for batch in range(BATCHES)]
        errors[key] = sum(float(change.square().sum()) for change in changes)
    assert errors["strong"] < errors["plain"]


def test_parameters_outside_their_range() -> None:
    for wrong in ({"strength": -1.0}, {"rank": 0.0}, {"rank": 1.5}):
        with pytest.raises(InvalidMethod):
            LowRankMimicking(**wrong)  # type: ignore[arg-type]
