"""What a normalisation does is found by trying it."""

from __future__ import annotations

import pytest
import torch
from families import BY_NAME
from torch import Tensor, nn

from pennyweight.network.finding.norms import norm_of


def kinds(name: str) -> set[tuple[str, float]]:
    found = (norm_of(module) for module in BY_NAME[name].model().modules())
    return {(norm.kind, norm.offset) for norm in found if norm is not None}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ("rms", 0.0)), ("gemma2", ("rms", 1.0)), ("gemma3", ("rms", 1.0)), ("t5", ("rms", 0.0)),
        ("gpt2", ("layer", 0.0)), ("bert", ("layer", 0.0)), ("mamba", ("rms", 0.0)), ("resnet", ("affine", 0.0)),
        ("mobilenet-v2", ("affine", 0.0)), ("dit", ("layer", 0.0)), ("unet", ("group", 0.0)),
    ],
)  # fmt: skip
def test_norms_of_real_networks(name, expected):
    assert kinds(name) == {expected}


def test_torchs_own():
    assert norm_of(nn.LayerNorm(8)) is not None
    assert norm_of(nn.LayerNorm(8, bias=False)).bias is None
    assert norm_of(nn.LayerNorm(8, elementwise_affine=False)).gain is None
    assert norm_of(nn.RMSNorm(8)).kind == "rms"
    batch = norm_of(nn.BatchNorm2d(8).eval())
    assert (batch.kind, batch.axis, batch.buffers) == ("affine", 1, ("running_mean", "running_var"))


def test_a_batch_norm_that_looks_at_the_batch_is_none():
    assert norm_of(nn.BatchNorm2d(8).train()) is None
    assert norm_of(nn.BatchNorm2d(8, track_running_stats=False).eval()) is None


def test_what_is_no_norm():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    class Odd(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.square().mean(-1, keepdim=True).sqrt() * self.weight**2

    assert norm_of(Scale()) is None
    assert norm_of(Odd()) is None
    assert norm_of(nn.Linear(8, 8)) is None
    assert norm_of(nn.ReLU()) is None
    assert norm_of(nn.LayerNorm((4, 8))) is None
