"""What is shipped loads elsewhere: transformers gives the logits of our own loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pennyweight.flow.delivery import Outcome
from pennyweight.flow.load import load
from pennyweight.network.running.stream import Stream

pytest.importorskip("compressed_tensors", reason="the engines extra is not installed")
pytest.importorskip("accelerate", reason="the engines extra is not installed")


def ours(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    runner = Stream(load(directory))
    with torch.no_grad():
        hidden = runner.forward(ids)
        with runner.end() as finish:
            return torch.stack([finish(window) for window in hidden])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["outcome", "by_bits", "from_gguf"])
def test_same_logits(name: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForCausalLM

    outcome: Outcome = request.getfixturevalue(name)
    ids = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(outcome.out, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(input_ids=ids).logits
    found = ours(outcome.out, ids)
    difference = (found - theirs).abs().max() / theirs.abs().max()
    assert difference < 1e-4
    assert found.std() > 0.1
