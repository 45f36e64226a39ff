"""Every pricing against the contract of its room: nats of squared changes, on the scale of what the network minds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pennyweight import catalogue
from pennyweight.formats import Grid
from pennyweight.methods.pricing import Change, HessianTrace, Kronecker
from pennyweight.methods.quantization import RoundToNearest
from pennyweight.statistics import Statistics

METHODS = catalogue.classes("pricing")
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)


def change(seed: int = 0, *, identity: bool = False) -> Change:
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = torch.randn(24, 64, generator=generator), torch.randn(200, 64, generator=generator)
    gram = torch.eye(64) if identity else inputs.T @ inputs / 200
    grids = [Grid(bits=bits, group_size=32) for bits in (2, 3, 4, 8)]
    fisher = torch.ones(24) if identity else torch.rand(24, generator=generator)
    outputs = RoundToNearest().predict(weight, Statistics(edge="x", gram=gram, count=200), grids)
    return Change(weight=weight, formats=grids, outputs=outputs, fisher=fisher, gram=gram, stands_for=torch.ones(24))


@every_method
def test_one_damage_a_format_and_fewer_bits_cost_more(kind: type[Any]) -> None:
    damages = kind().price(change())
    assert damages.shape == (4,)
    assert damages.dtype == torch.float64
    assert (damages > 0).all()
    assert (damages.diff() < 0).all()


@every_method
def test_half_the_change_costs_a_quarter(kind: type[Any]) -> None:
    """Of weight and change together, with the same activations."""
    whole = change()
    half = replace(whole, weight=whole.weight / 2, outputs=whole.outputs / 4)
    torch.testing.assert_close(kind().price(half), kind().price(whole) / 4, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", [Kronecker, HessianTrace])
def test_what_the_network_minds_twice_costs_twice(kind: type[Any]) -> None:
    whole = change()
    doubled = replace(whole, fisher=2 * whole.fisher)
    torch.testing.assert_close(kind().price(doubled), 2 * kind().price(whole))


def test_trace_and_factors_agree_where_the_hessian_is_the_same_everywhere() -> None:
    """And where it is not they do not: the trace spreads it evenly."""
    flat, bent = change(identity=True), change()
    torch.testing.assert_close(HessianTrace().price(flat), Kronecker().price(flat), rtol=1e-4, atol=0)
    assert (HessianTrace().price(bent) / Kronecker().price(bent) - 1).abs().max() > 0.01


@every_method
def test_rows_that_stand_for_others_count_for_them(kind: type[Any]) -> None:
    """Every second row, counted twice, where all rows are alike."""
    whole = change(identity=True)
    even = replace(
        whole, weight=whole.weight[:12].repeat(2, 1), outputs=whole.outputs[:, :12].repeat(1, 2), fisher=whole.fisher
    )
    half = replace(
        even, weight=even.weight[:12], outputs=even.outputs[:, :12], fisher=2 * even.fisher[:12],
        stands_for=2 * even.stands_for[:12],
    )  # fmt: skip
    torch.testing.assert_close(kind().price(half), kind().price(even), rtol=1e-5, atol=0)
