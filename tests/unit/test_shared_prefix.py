"""A shared prompt against what it stands for: one row a continuation, each with the prompt in front, in float64."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from pennyweight.errors import InvalidModel, InvalidText
from pennyweight.network.running import shared_prefix as module
from pennyweight.network.running.shared_prefix import check_shared_prefix, shared_prefix

SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
PLAIN = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "bos_token_id": None, "eos_token_id": None}
GEMMA = {"model_type": "gemma3_text", **SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
STATES = {**PLAIN, "state_size": 8}
EXACT: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SHAPE},
    "qwen2": {"model_type": "qwen2", **SHAPE, "tie_word_embeddings": True},
    "gpt2": {  # learned positions
        "model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128,
        "bos_token_id": None, "eos_token_id": None,
    },
    "gemma3": {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},  # windows of 8
    "bloom": {"model_type": "bloom", **PLAIN, "n_head": 4},  # no positions but slopes
    "mixtral": {"model_type": "mixtral", **SHAPE, "num_local_experts": 4},
    "llama4": {  # chunks of 8, experts
        "model_type": "llama4_text", **SHAPE, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
        "attention_chunk_size": 8,
    },
}  # fmt: skip
CASES = [(family, way) for family in EXACT for way in ("sdpa", "eager") if (family, way) != ("bloom", "sdpa")]
LENGTHS = (11, 3, 7, 1)


def build(config: dict[str, Any], dtype: torch.dtype = torch.float64, **settings: Any) -> nn.Module:
    """A random model whose gains and biases are not what they start as."""
    with torch.random.fork_rng():
        made = AutoConfig.for_model(**config)
        settings = {"experts_implementation": "eager", **settings}  # others have no float64
        model: nn.Module = AutoModelForCausalLM.from_config(made, dtype=dtype, **settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype))
    return model.eval()


def tokens(prompt: int, lengths: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(prompt)
    return torch.randint(96, (prompt,), generator=generator), [
        torch.randint(96, (length,), generator=generator) for length in lengths
    ]


def separate_rows(model: nn.Module, prefix: Tensor, suffixes: list[Tensor]) -> list[Tensor]:
    """By definition: the position before a token predicts it."""
    rows = [model(input_ids=torch.cat([prefix, suffix])[None], use_cache=False).logits[0] for suffix in suffixes]
    return [row[len(prefix) - 1 : -1] for row in rows]


def gradients(model: nn.Module, logits: list[Tensor], suffixes: list[Tensor]) -> dict[str, Tensor]:
    """Of the log-likelihoods, each suffix with a weight of its own, with respect to every parameter."""
    loss = sum(
        (i + 1.0) * scores.log_softmax(-1).gather(1, suffix[:, None]).sum()
        for i, (scores, suffix) in enumerate(zip(logits, suffixes, strict=True))
    )
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max())


@pytest.fixture
def all_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families normalise in float32 whatever their dtype; here that is as wide as the rest."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.usefixtures("all_double")
@pytest.mark.parametrize(("family", "attention"), CASES)
def test_logits_and_gradients_are_those_of_separate_rows(family: str, attention: str) -> None:
    model = build(EXACT[family], attn_implementation=attention)
    for prompt, lengths in ((37, LENGTHS), (1, (4, 2)), (37, (9,)), (5, (1, 1))):
        prefix, suffixes = tokens(prompt, lengths)
        found, expected = shared_prefix(model, prefix, suffixes), separate_rows(model, prefix, suffixes)
        for ours, theirs, length in zip(found, expected, lengths, strict=True):
            assert ours.shape == (length, 96)
            assert ours.dtype == torch.float64
            assert largest(ours - theirs) <= 1e-12 * largest(theirs)
        ours, theirs = gradients(model, found, suffixes), gradients(model, expected, suffixes)
        for name, gradient in theirs.items():
            assert largest(ours[name] - gradient) <= 1e-10 * largest(gradient), name
        assert max(map(largest, theirs.values())) > 1e-3, "the case distinguishes nothing"


def test_the_windows_of_the_cases_matter() -> None:
    prefix, suffixes = tokens(37, LENGTHS)
    for family, key in (("gemma3", "sliding_window"), ("llama4", "attention_chunk_size")):
        narrow, wide = (build({**EXACT[family], key: size}) for size in (8, 64))
        difference = separate_rows(narrow, prefix, suffixes)[0] - separate_rows(wide, prefix, suffixes)[0]
        assert largest(difference) > 1e-3


def test_the_prompt_is_read_once_and_copied_nowhere() -> None:
    model, read = build(EXACT["llama"]), []
    check_shared_prefix(model)
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(tuple(args[0].shape)))  # type: ignore[operator]
    prefix, suffixes = tokens(37, LENGTHS)
    shared_prefix(model, prefix, suffixes)
    assert read == [(1, 37), (3, 10)]  # a single token is predicted by the prompt, and the last ones are not read
    read.clear()
    shared_prefix(model, prefix, [suffix[:1] for suffix in suffixes])
    assert read == [(1, 37)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", EXACT)
def test_the_check_knows_rounding_from_errors(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(EXACT[family], dtype)
    check_shared_prefix(model)
    lend = module._lender
    calls: list[int] = []

    def forgetful(keys: Tensor, values: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        calls.append(1)
        return lend(keys, torch.zeros_like(values) if len(calls) == 2 else values)

    monkeypatch.setattr(module, "_lender", forgetful)
    check_shared_prefix(model)  # it passed
    monkeypatch.setattr(module, "_passed", weakref.WeakKeyDictionary())
    with pytest.raises(InvalidModel, match="logits differ"), torch.no_grad():
        check_shared_prefix(model)


def test_gradients_that_end_in_the_cache_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(EXACT["llama"])
    update = DynamicLayer.update

    def detached(self: DynamicLayer, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        found = update(self, keys, values)
        self.keys = self.keys.detach()
        return found

    monkeypatch.setattr(DynamicLayer, "update", detached)
    with torch.no_grad():
        check_shared_prefix(model)  # the numbers are right
    with pytest.raises(InvalidModel, match="gradients differ"):
        check_shared_prefix(model)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "mamba", **STATES}, "LinearAttentionLayer"),
        ({"model_type": "mamba2", **STATES, "num_heads": 8, "head_dim": 8, "n_groups": 2}, "LinearAttentionLayer"),
        ({"model_type": "rwkv", **PLAIN}, "keeps 0 of 19 tokens"),
        ({"model_type": "bert", **SHAPE, "pad_token_id": 0}, "logits differ"),  # every token sees those after it
    ],
)  # fmt: skip
def test_models_that_keep_or_see_something_else_are_refused(config: dict[str, Any], why: str) -> None:
    model = build(config, torch.float32)
    prefix, suffixes = tokens(37, LENGTHS)
    for _ in range(2):
        with pytest.raises(InvalidModel, match=why) as error:
            shared_prefix(model, prefix, suffixes)
        assert "separate rows" in error.value.mend


def test_what_differs_while_training_is_refused() -> None:
    chance = build(EXACT["gpt2"])  # dropout of 0.1 by default
    check_shared_prefix(chance)
    with pytest.raises(InvalidModel, match=r"p = 0\.1"):
        check_shared_prefix(chance.train())
    jitter = build({**EXACT["mixtral"], "router_jitter_noise": 0.01})
    check_shared_prefix(jitter)
    with pytest.raises(InvalidModel, match=r"jitter_noise = 0\.01"):
        check_shared_prefix(jitter.train())
    model = build(EXACT["llama"]).train()
    check_shared_prefix(model)
    model.activation_checkpointing_enable()  # type: ignore[operator]
    with pytest.raises(InvalidModel, match="recomputes") as error:
        check_shared_prefix(model)
    assert "disable" in error.value.mend
    check_shared_prefix(model.eval())
    model.config.expert_capacity = 4  # type: ignore[union-attr]
    with pytest.raises(InvalidModel, match="expert_capacity = 4"):
        check_shared_prefix(model)
    with pytest.raises(InvalidModel, match="no configuration"):
        check_shared_prefix(nn.Linear(2, 2))


def test_the_check_leaves_no_trace_and_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(EXACT["llama"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compared: list[bool] = []
    errors = module._errors
    monkeypatch.setattr(module, "_errors", lambda m: (compared.append(m.training), errors(m))[1])
    state = torch.get_rng_state()
    for _ in range(2):
        check_shared_prefix(model)
    assert compared == [False]
    check_shared_prefix(model.train())
    with torch.no_grad():
        check_shared_prefix(model)
    assert compared == [False, True, True]
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.get_input_embeddings()._forward_hooks  # type: ignore[operator]
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None, "the check keeps a model alive"


def test_texts_that_cannot_be_read() -> None:
    model = build(EXACT["gpt2"])
    prefix, suffixes = tokens(37, LENGTHS)
    empty = prefix[:0]
    for first, rest in ((empty, suffixes), (prefix, []), (prefix, [*suffixes, empty])):
        with pytest.raises(InvalidText, match="no token"):
            shared_prefix(model, first, rest)
    for wrong in (-1, 96):
        with pytest.raises(InvalidText, match=f"{wrong}") as error:
            shared_prefix(model, prefix, [torch.tensor([3, wrong])])
        assert "[0, 95]" in error.value.expected
    shared_prefix(model, *tokens(100, (28,)))
    with pytest.raises(InvalidText, match="100 tokens and a continuation of 29") as error:
        shared_prefix(model, *tokens(100, (2, 29)))
    assert error.value.expected == "128 tokens at most"


def test_positions_that_change_with_the_length_of_the_row() -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0,
    }  # fmt: skip
    model = build({"model_type": "phi3", **SHAPE, "original_max_position_embeddings": 40, "rope_parameters": rope})
    for prompt, lengths in ((29, LENGTHS), (41, LENGTHS)):
        prefix, suffixes = tokens(prompt, lengths)
        with torch.no_grad():
            found, expected = shared_prefix(model, prefix, suffixes), separate_rows(model, prefix, suffixes)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for prompt in (30, 40):
        with pytest.raises(InvalidText, match=f"a prompt of {prompt} tokens") as error:
            shared_prefix(model, *tokens(prompt, LENGTHS))
        assert error.value.expected == "40 tokens at most, or a prompt longer than that"
