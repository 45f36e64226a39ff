"""Rounding again for what layers really read: the target, the error it lowers, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pennyweight import formats
from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMethod
from pennyweight.flow.recover import shown, split
from pennyweight.formats import Part
from pennyweight.methods.quantization import GPTQ
from pennyweight.methods.recovery import CorrectedTarget
from pennyweight.methods.recovery.corrected_target import Moments, decoded
from pennyweight.piece import Piece, Weights
from pennyweight.statistics import Statistics

OUT, IN, TOKENS, BATCHES = 48, 64, 600, 6


def inputs(mismatch: float, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """What a layer reads in the reference, and a little away from it: correlated, and not by chance alone."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(IN, IN, generator=generator) / IN**0.5 * torch.logspace(0, -1.5, IN)
    wrong = torch.eye(IN) + mismatch * torch.randn(IN, IN, generator=generator) / IN**0.5
    meant = [torch.randn(TOKENS, IN, generator=generator) @ mixing for _ in range(BATCHES)]
    return meant, [x @ wrong for x in meant]


def piece_of(weight: Tensor, meant: list[Tensor], now: list[Tensor], label: str) -> Piece:
    def store(_name: str, target: Tensor, gram: Tensor) -> Part:
        seen = Statistics(edge="x", count=TOKENS, gram=gram)
        made = GPTQ().compress(target, seen, formats.parse(label), generator=torch.Generator())
        return made.parts[0]

    return Piece(
        BATCHES, 1, lambda weights, batch: (now[batch] @ weights["w"].T)[None],
        lambda batch: (meant[batch] @ weight.T)[None],
        reads=lambda weights, batch, _: {"w": meant[batch] if weights is None else now[batch]}, store=store,
    )  # fmt: skip


def recovered(label: str, mismatch: float, **more: Any) -> tuple[Part, Part, dict[str, Any], Tensor]:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5))
    meant, now = inputs(mismatch)
    gram = torch.cat(meant).T @ torch.cat(meant) / (TOKENS * BATCHES)
    seen = Statistics(edge="x", count=TOKENS * BATCHES, gram=gram)
    start = GPTQ().compress(weight, seen, formats.parse(label), generator=torch.Generator()).parts[0]
    method = CorrectedTarget(**more)
    piece = piece_of(weight, meant, now, label)
    found, record = method.recover(piece, {"w": start}, {"w": weight}, seed=0, advance=lambda: None)
    return start, found["w"], record, weight


@pytest.mark.parametrize("label", ["int4 g32 asym", "int3 g32 asym", "nf4 g32", "int2 g32 affine"])
def test_it_lowers_the_error_against_the_reference(label: str) -> None:
    _, _, record, _ = recovered(label, 0.15)
    assert record["kept"]
    assert record["after"] < 0.9 * record["before"]


def test_the_target_beats_the_weight_itself() -> None:
    """The same quantizer on the same inputs, aiming at W and at W*."""
    aimed_at_weight = recovered("int3 g32 asym", 0.15, strength=0.0)[2]
    aimed_at_target = recovered("int3 g32 asym", 0.15)[2]
    assert aimed_at_target["after"] < 0.9 * aimed_at_weight["after"]


def test_the_target_is_the_nearest_matrix() -> None:
    """Least squares by a solver that knows nothing of gram matrices."""
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    meant, now = (torch.cat(x).double() for x in inputs(0.3))
    moments = Moments(torch.zeros(IN, IN, dtype=torch.float64), torch.zeros(IN, IN, dtype=torch.float64))
    moments.add(now, meant)
    expected = torch.linalg.lstsq(now, meant @ weight.T).solution.T
    torch.testing.assert_close(moments.target(weight, 1e-12, 1.0), expected, rtol=0, atol=1e-4)


def test_without_a_mismatch_the_target_is_the_weight() -> None:
    weight = torch.randn(OUT, IN)
    meant, _ = inputs(0.0)
    moments = Moments.of(IN)
    moments.add(meant[0], meant[0])
    assert torch.equal(moments.target(weight, 0.01, 1.0), weight)


def test_what_gains_nothing_elsewhere_is_not_kept() -> None:
    start, found, record, _ = recovered("int4 g32 asym", 0.0)
    assert not record["kept"]
    assert all(torch.equal(start.tensors[name], tensor) for name, tensor in found.tensors.items())


def test_no_rounds_change_nothing() -> None:
    start, found, record, _ = recovered("int4 g32 asym", 0.15, rounds=0)
    assert record["before"] == record["after"]
    assert not record["kept"]
    assert found is start


def test_the_batches_held_out_are_not_looked_at() -> None:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5))
    meant, now = inputs(0.15)
    looked = set[int]()
    piece = piece_of(weight, meant, now, "int4 g32 asym")
    reads = piece.reads

    def watched(weights: Weights | None, batch: int, names: Collection[str]) -> Weights:
        assert reads is not None
        looked.add(batch)
        return reads(weights, batch, names)

    start = formats.parse("int4 g32 asym").store(weight)
    CorrectedTarget().recover(replace(piece, reads=watched), {"w": start}, {"w": weight}, seed=0, advance=lambda: None)
    assert looked == set(range(BATCHES - 1))


def test_a_weight_that_is_not_seen_keeps_its_codes() -> None:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5))
    meant, now = inputs(0.15)
    piece = piece_of(weight, meant, now, "int4 g32 asym")
    parts = {name: formats.parse("int4 g32 asym").store(weight) for name in ("w", "experts")}
    weights = dict.fromkeys(parts, weight)
    found, record = CorrectedTarget().recover(piece, parts, weights, seed=0, advance=lambda: None)
    assert found["experts"] is parts["experts"]
    assert record["left"] == ["experts"]
    assert not torch.equal(decoded(found, weights)["w"], decoded(parts, weights)["w"])


def test_a_weight_that_reads_some_tokens_only_keeps_its_codes() -> None:
    """Routed by a network that was rounded, these may be others than in the reference."""
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5))
    meant, now = inputs(0.15)
    piece = piece_of(weight, meant, now, "int4 g32 asym")

    def reads(values: Weights | None, batch: int, _: Collection[str]) -> Weights:
        x = meant[batch] if values is None else now[batch]
        return {"w": x, "expert": x[: 100 if values is None else 90]}

    parts = {name: formats.parse("int4 g32 asym").store(weight) for name in ("w", "expert")}
    weights = dict.fromkeys(parts, weight)
    found, record = CorrectedTarget().recover(replace(piece, reads=reads), parts, weights, seed=0, advance=lambda: None)
    assert record["left"] == ["expert"]
    assert found["w"] is not parts["w"]


def test_a_weight_that_cannot_be_rounded_keeps_its_codes() -> None:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5))
    piece = replace(piece_of(weight, *inputs(0.15), "int4 g32 asym"), store=lambda *_: None)
    parts = {"w": formats.parse("int4 g32 asym").store(weight)}
    found, record = CorrectedTarget().recover(piece, parts, {"w": weight}, seed=0, advance=lambda: None)
    assert found["w"] is parts["w"]
    assert record["left"] == ["w"]
    assert not record["kept"]


def test_a_layer_is_rounded_for_what_its_new_neighbours_give_it() -> None:
    """Two layers in a row: the second must see what the first gives after it was rounded again, not before."""
    generator = torch.Generator().manual_seed(5)
    weights = {name: torch.randn(IN, IN, generator=generator) / IN**0.5 for name in ("first", "second")}
    meant, now = inputs(0.15)
    seen = list[Tensor]()

    def reads(values: Weights | None, batch: int, names: Collection[str]) -> Weights:
        x, given = (meant[batch], weights) if values is None else (now[batch], values)
        if values is not None and set(names) == {"second"}:
            seen.append(values["first"])
        return {name: read for name, read in (("first", x), ("second", x @ given["first"].T)) if name in names}

    piece = replace(
        piece_of(weights["first"], meant, now, "int3 g32 asym"), reads=reads,
        run=lambda values, batch: (now[batch] @ values["first"].T @ values["second"].T)[None],
        target=lambda batch: (meant[batch] @ weights["first"].T @ weights["second"].T)[None],
    )  # fmt: skip
    parts = {name: formats.parse("int3 g32 asym").store(weight) for name, weight in weights.items()}
    found, record = CorrectedTarget().recover(piece, parts, weights, seed=0, advance=lambda: None)
    assert record["kept"]
    assert seen
    assert all(torch.equal(first, decoded(found, weights)["first"]) for first in seen)


def test_a_whole_network_is_no_piece_for_it() -> None:
    weight = torch.randn(OUT, IN)
    piece = replace(piece_of(weight, *inputs(0.1), "int4 g32 asym"), reads=None)
    with pytest.raises(InvalidMethod, match="does not show what its layers read"):
        CorrectedTarget().recover(
            piece, {"w": formats.parse("int4 g32 asym").store(weight)}, {"w": weight}, seed=0, advance=lambda: None
        )


@pytest.mark.parametrize("wrong", [{"damping": 0.0}, {"strength": -1.0}, {"rounds": -1}, {"batches": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidMethod):
        CorrectedTarget(**wrong)


@pytest.mark.parametrize(("windows", "length", "left"), [(64, 96, 56), (34, 512, 32), (20, 32, 18), (1, 32, 1)])
def test_statistics_before_recovery_leave_out_what_it_holds_out(windows: int, length: int, left: int) -> None:
    """The very windows: those behind the last batch that recovery trains on."""
    ids = torch.arange(windows * length).view(windows, length)
    text = Windows(
        ids=ids, documents=torch.arange(windows), names=("a",), source="", split="calibration", fingerprint="f",
        dropped_tokens=0, text_bytes=0,
    )  # fmt: skip
    batches, held_out = split(ids)
    found = shown(text)
    assert len(found) == left
    assert torch.equal(found.ids, ids[:left])
    assert torch.equal(found.documents, torch.arange(left))
    if windows > 1:
        assert torch.equal(torch.cat([*batches[:-held_out]]), found.ids)
        assert found.fingerprint != text.fingerprint
