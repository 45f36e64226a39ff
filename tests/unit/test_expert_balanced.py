"""Text that a mixture of experts writes for its own calibration: the search by brute force, and what was routed."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

import pennyweight as pw
from pennyweight.errors import InvalidMethod, InvalidModel
from pennyweight.methods.calibration import ExpertBalanced
from pennyweight.methods.calibration.expert_balanced import imbalance
from pennyweight.network.running.routing import experts_of, routed
from pennyweight.numerics.random import stream

WORDS, LENGTH = 4, 5
TABLE = torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(3)).mul(0.7).log_softmax(-1)


def chain(ids: Tensor) -> tuple[Tensor, Tensor]:
    """A Markov chain whose tokens are experts."""
    return TABLE[ids[:, -1]], torch.nn.functional.one_hot(ids, WORDS).sum(1, keepdim=True).float()


def best_of_all(first: int, temperature: float) -> tuple[int, ...]:
    scores = {}
    for rest in product(range(WORDS), repeat=LENGTH - 1):
        ids = (first, *rest)
        log_p = sum(float(TABLE[a, b]) for a, b in pairwise(ids))
        share = torch.bincount(torch.tensor(ids[:-1]), minlength=WORDS) / (LENGTH - 1)
        sigma = float((WORDS / (WORDS - 1) * (share - 1 / WORDS).square().sum()).sqrt())
        scores[ids] = -log_p / LENGTH + sigma / temperature
    return min(scores, key=lambda ids: scores[ids])


@pytest.mark.parametrize("temperature", [0.3, 1.2, 1e9])
def test_enough_beams_find_the_best_of_all_windows(temperature: float) -> None:
    method = ExpertBalanced(beams=WORDS ** (LENGTH - 2), temperature=temperature)
    found = method.written(chain, torch.arange(WORDS), LENGTH)
    assert [tuple(row) for row in found.tolist()] == [best_of_all(first, temperature) for first in range(WORDS)]


def test_imbalance_is_zero_for_equal_shares_and_one_for_one_expert() -> None:
    routing = torch.tensor([[[3.0, 3.0, 3.0, 3.0]], [[0.0, 7.0, 0.0, 0.0]], [[4.0, 4.0, 0.0, 0.0]]])
    torch.testing.assert_close(imbalance(routing), torch.tensor([0.0, 1.0, (4 / 3 * 4 / 16) ** 0.5]))
    both = torch.cat([routing[:1], routing[1:2]], 1)
    assert float(imbalance(both)) == pytest.approx(0.5)


def test_balance_costs_likelihood() -> None:
    even, likely = (ExpertBalanced(temperature=t).written(chain, torch.arange(WORDS), 12) for t in (0.2, 1e9))

    def told(ids: Tensor) -> tuple[float, float]:
        return float(imbalance(chain(ids)[1]).mean()), float(TABLE[ids[:, :-1], ids[:, 1:]].mean())

    assert told(even)[0] < told(likely)[0]
    assert told(even)[1] < told(likely)[1]


def test_first_tokens_are_used_once_as_long_as_there_are_others() -> None:
    pool = torch.arange(WORDS).repeat(6, 3)[:, :LENGTH]
    found = ExpertBalanced().degrade(pool, generator=stream(0, "test"), model=chain)
    assert sorted(torch.bincount(found[:, 0], minlength=WORDS).tolist()) == [1, 1, 2, 2]
    with pytest.raises(InvalidMethod, match="no model"):
        ExpertBalanced().degrade(pool, generator=stream(0, "test"))


def test_routing_of_a_mixture_window_by_window() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    module = MixtralForCausalLM(config).eval().requires_grad_(False)
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 4)
    ids = torch.randint(0, 96, (3, 10), generator=torch.Generator().manual_seed(1))
    experts = experts_of(pw.network_of(module, {"input_ids": ids}))
    assert experts == {4}
    run = routed(lambda windows: module(input_ids=windows, use_cache=False).logits, experts)
    log_p, counts = run(ids)
    assert log_p.shape == (3, 96)
    assert counts.shape == (3, 2, 4)
    assert torch.equal(counts.sum(-1), torch.full((3, 2), 20.0)), "two experts for every token"
    alone = torch.cat([run(window[None])[1] for window in ids])
    assert torch.equal(alone, counts)
    written = ExpertBalanced(beams=2).degrade(ids, generator=stream(0, "test"), model=run)
    assert written.shape == ids.shape
    with pytest.raises(InvalidModel, match="no token chose"):
        routed(lambda windows: module(input_ids=windows).logits, {5})(ids)
