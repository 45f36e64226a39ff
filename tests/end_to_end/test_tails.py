"""Tail risk on tiny models: exact enumeration, brute force and importance sampling must agree."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pennyweight.errors import InvalidMeasurement, InvalidMethod, InvalidText, PennyweightError
from pennyweight.flow.sampling.generate import Resident, resident
from pennyweight.flow.sampling.mixture import Written, write
from pennyweight.flow.sampling.tails import TailRisk, tail_risk
from pennyweight.methods.probability import ImportanceSampling
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.tokenizer import load_tokenizer

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None,
    "eos_token_id": 7, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
END, BAD = 7, 65  # the tokens that end a text and make it bad
PROMPT = [40, 41]
Pair = tuple[Resident, Resident]


@pytest.fixture(scope="module")
def networks(
    save_model: Callable[[dict[str, Any], Path], nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Network, Network]:
    """A reference that seldom writes the bad token, and a compressed model that likes it; both like to end."""
    made = []
    for name, liking in (("reference", -0.5), ("compressed", 3.0)):
        directory = tmp_path_factory.mktemp("tails") / name
        model: Any = save_model(CONFIG, directory)
        with torch.no_grad():
            # the first number of every hidden state is then about 4, so that a head's first weight acts like a bias
            model.model.embed_tokens.weight[:, 0] = 1.0
            model.lm_head.weight[BAD, 0] += liking / 4
            model.lm_head.weight[END, 0] += 3.5 / 4
        model.save_pretrained(directory)
        made.append(load_network(open_source(directory)))
    return made[0], made[1]


@pytest.fixture(scope="module")
def pair(networks: tuple[Network, Network]) -> Iterator[Pair]:
    with resident(networks[0]) as reference, resident(networks[1]) as compressed:
        yield reference, compressed


def draw(pair: Pair, count: int, length: int, *, seed: int = 1, **changes: Any) -> Written:
    uniforms = torch.rand(count, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    how = {"mix": 0.5, "switch": length, "temperature": 1.0, "stop": [END], **changes}
    return write(pair[0], how.pop("proposal", pair[1]), PROMPT, uniforms, **how)


def badness(drawn: Written) -> np.ndarray:
    return np.array([float(BAD in tokens) for tokens in drawn.tokens])


def estimated(drawn: Written) -> Any:
    return ImportanceSampling(resamples=200).estimate(
        drawn.log_target.numpy(), drawn.log_proposal.numpy(), badness(drawn)
    )


def within(result: Any, drawn: Written, truth: float, *, slack: float = 0.0) -> bool:
    parts = np.exp((drawn.log_target - drawn.log_proposal).numpy()) * badness(drawn)
    return bool(abs(result.value - truth) < 3.5 * math.hypot(parts.std() / len(parts) ** 0.5, slack))


def exact_two_tokens(model: Resident, temperature: float = 1.0) -> float:
    """Probability that one of the first two tokens is bad, from the model's own log-probabilities."""
    first = (model.next_log_probabilities([PROMPT])[0] / temperature).log_softmax(-1).exp()
    others = [token for token in range(256) if token not in (BAD, END)]
    second = (model.next_log_probabilities([[*PROMPT, t] for t in others]) / temperature).log_softmax(-1).exp()
    return float(first[BAD] + first[others] @ second[:, BAD])


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize(("mix", "switch"), [(0.5, 2), (0.9, 1)])
def test_two_tokens_against_enumeration(pair: Pair, mix: float, switch: int, temperature: float) -> None:
    truth = exact_two_tokens(pair[0], temperature)
    assert 1e-3 < truth < 0.02
    drawn = draw(pair, 2000, 2, mix=mix, switch=switch, temperature=temperature)
    assert within(estimated(drawn), drawn, truth)


def test_weights_are_those_of_whole_texts_with_their_end(pair: Pair) -> None:
    """Score what was written again, without a cache: end token counted, nothing after it, proposal as declared."""
    drawn = draw(pair, 200, 6, mix=0.3, switch=3)
    assert {len(tokens) for tokens in drawn.tokens} == {1, 2, 3, 4, 5, 6}
    for i, tokens in enumerate(drawn.tokens[:60]):
        assert END not in tokens[:-1]
        log_p = log_q = 0.0
        for t, token in enumerate(tokens):
            p, other = (float(m.next_log_probabilities([PROMPT + tokens[:t]])[0, token]) for m in pair)
            log_p += p
            log_q += math.log(0.3 * math.exp(other) + 0.7 * math.exp(p)) if t < 3 else p
        assert float(drawn.log_target[i]) == pytest.approx(log_p, abs=1e-4)
        assert float(drawn.log_proposal[i]) == pytest.approx(log_q, abs=1e-4)


def test_importance_sampling_agrees_with_brute_force_and_needs_fewer_texts(pair: Pair) -> None:
    plain = draw(pair, 6000, 5, proposal=None)
    assert torch.equal(plain.log_target, plain.log_proposal)
    h = badness(plain)
    assert 0.002 < h.mean() < 0.03
    assert 1.5 < np.mean([len(tokens) for tokens in plain.tokens]) < 4.9
    error = float(h.std() / len(h) ** 0.5)
    weighted = draw(pair, 1500, 5, mix=0.5, seed=2)
    result = estimated(weighted)
    assert within(result, weighted, float(h.mean()), slack=error)
    assert result.mean_weight == pytest.approx(1, abs=0.1)
    assert result.bad > 10 * h.mean() * 1500
    weights = np.exp((weighted.log_target - weighted.log_proposal).numpy())
    assert (weights * badness(weighted)).var() < h.var() / 4


def test_without_a_mixture_all_weights_are_one(pair: Pair) -> None:
    plain = draw(pair, 100, 5, proposal=None)
    for same in (draw(pair, 100, 5, mix=0.0), draw(pair, 100, 5, switch=0)):
        assert same.tokens == plain.tokens
        assert torch.equal(same.log_target, same.log_proposal)


def test_a_text_depends_on_its_own_random_numbers_alone(pair: Pair) -> None:
    uniforms = torch.rand(150, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    how: dict[str, Any] = {"mix": 0.5, "switch": 4, "temperature": 1.0, "stop": [END]}
    whole = write(pair[0], pair[1], PROMPT, uniforms, **how)
    part = write(pair[0], pair[1], PROMPT, uniforms[100:110], **how)
    assert part.tokens == whole.tokens[100:110]
    torch.testing.assert_close(part.log_target, whole.log_target[100:110], rtol=1e-5, atol=1e-5)


def test_another_vocabulary_is_refused(pair: Pair) -> None:
    class Short:
        def start(self, *args: Any) -> tuple[Tensor, Any]:
            logits, cache = pair[1].start(*args)
            return logits[:, :200], cache

    with pytest.raises(PennyweightError, match="256 and 200 tokens"):
        draw(pair, 3, 2, proposal=Short())


@pytest.fixture(scope="module")
def risk(networks: tuple[Network, Network]) -> TailRisk:
    return run(networks)


def run(networks: tuple[Network, Network], **changes: Any) -> TailRisk:
    letter = load_tokenizer(networks[0].source).decode([BAD])
    arguments: dict[str, Any] = {
        "samples": 300, "plain_samples": 500, "max_new_tokens": 4, "mix": 0.5, "seed": 4, **changes,
    }  # fmt: skip
    return tail_risk(*networks, ["ab", "a longer prompt"], lambda text: float(letter in text), **arguments)


def test_both_models_are_estimated_and_certified(risk: TailRisk) -> None:
    for model in (risk.reference, risk.compressed):
        assert model.certificate.samples == len(model.plain) == 1000
        assert model.certificate.rule == "clopper-pearson"
        assert model.certificate.mean == pytest.approx(np.mean(model.plain))
        assert model.certificate.mean < model.certificate.bound
        assert model.estimate.low <= model.estimate.value <= model.estimate.high
        assert np.mean(model.by_prompt) == pytest.approx(model.estimate.value)
        assert model.estimate.value < model.certificate.bound
    assert (risk.reference.proposal, risk.compressed.proposal) == ("compressed", "none")
    assert risk.compressed.estimate.mean_weight == 1
    assert risk.compressed.certificate.mean > 5 * risk.reference.certificate.mean
    assert risk.ratio == risk.compressed.estimate.value / risk.reference.estimate.value
    assert risk.stop == (END,)


def test_the_result_is_the_same_each_time_and_goes_through_json(
    risk: TailRisk, networks: tuple[Network, Network]
) -> None:
    again = run(networks)
    assert json.loads(json.dumps(again.to_json(), allow_nan=False)) == json.loads(json.dumps(risk.to_json()))
    assert run(networks, seed=5).reference.estimate.value != risk.reference.estimate.value
    with pytest.raises(dataclasses.FrozenInstanceError):
        risk.mix = 0.0  # type: ignore[misc]


def test_a_model_against_itself_has_the_same_tail(networks: tuple[Network, Network]) -> None:
    both = run((networks[0], networks[0]), samples=40, plain_samples=40)
    assert both.reference.plain == both.compressed.plain  # common random numbers
    assert both.reference.estimate.mean_weight == pytest.approx(1, abs=1e-9)


def test_a_sibling_is_the_proposal_for_both(networks: tuple[Network, Network]) -> None:
    both = run((networks[0], networks[0]), proposal=networks[1], samples=60, plain_samples=20)
    assert both.reference.proposal == both.compressed.proposal == "sibling"
    assert both.reference.estimate == both.compressed.estimate
    assert both.reference.estimate.bad > 60 * 2 * 0.02


def test_bad_input_is_refused(networks: tuple[Network, Network]) -> None:
    for changes in (
        {"mix": 1.0}, {"mix": -0.1}, {"temperature": 0.0}, {"samples": 1}, {"plain_samples": 0}, {"switch": -1},
        {"max_new_tokens": 0}, {"temperature": math.nan},
    ):  # fmt: skip
        with pytest.raises(InvalidMethod, match=next(iter(changes))):
            run(networks, **changes)
    with pytest.raises(InvalidText, match="no prompts"):
        tail_risk(*networks, [], lambda _: 0.0)
    with pytest.raises(InvalidText, match="empty prompt"):
        tail_risk(*networks, ["ok", ""], lambda _: 0.0, max_new_tokens=4)
    with pytest.raises(InvalidText, match="62 to write"):
        run(networks, max_new_tokens=62)
    with pytest.raises(InvalidMeasurement, match="judged 2"):
        tail_risk(*networks, ["a"], lambda _: 2.0, samples=2, max_new_tokens=1)
