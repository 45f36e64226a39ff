"""Writing text: token for token what transformers writes, and nothing left in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pennyweight.errors import InvalidText
from pennyweight.flow.sampling.generate import Resident, resident, stop_ids
from pennyweight.network.network import Network
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.tokenizer import load_tokenizer

NetworkOf = Callable[[str], Network]
ModelOf = Callable[[str], nn.Module]
FAMILIES = ("llama", "llama_tied", "qwen3", "gpt2", "gemma2", "mistral")
PROMPTS = [[5, 17, 200, 33], [7], [9, 9, 1, 250, 14, 3, 77]]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_what_transformers_writes(family: str, network_of: NetworkOf, model_of: ModelOf) -> None:
    with resident(network_of(family)) as writer:
        mine = writer.continue_greedy(PROMPTS, 24)  # beyond the sliding windows of gemma2 and mistral
    for prompt, written in zip(PROMPTS, mine, strict=True):
        ids = torch.tensor([prompt])
        theirs = model_of(family).generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
        )
        assert written == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_nothing(family: str, network_of: NetworkOf, model_of: ModelOf) -> None:
    ids = torch.randint(0, 256, (3, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model_of(family)(input_ids=ids, use_cache=False).logits
    with resident(network_of(family)) as writer:
        logits, cache = writer.step(ids[:, :12])
        torch.testing.assert_close(logits, expected[:, 11], rtol=1e-4, atol=1e-4)
        for t in range(12, 30):
            logits, cache = writer.step(ids[:, t : t + 1], cache)
            torch.testing.assert_close(logits, expected[:, t], rtol=1e-4, atol=1e-4)


@pytest.fixture
def writer(network_of: NetworkOf) -> Resident:
    with resident(network_of("llama")) as made:
        yield made


def test_copies_of_a_prompt_go_their_own_ways(writer: Resident) -> None:
    prompt = [4, 8, 15]
    logits, cache = writer.start(prompt, 3)
    assert logits.shape == (3, 256)
    logits, cache = writer.step(torch.tensor([[1], [2], [3]]), cache)
    alone = writer.next_log_probabilities([[*prompt, 1], [*prompt, 2], [*prompt, 3]])
    torch.testing.assert_close(logits.double().log_softmax(-1), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    assert not torch.equal(alone[0], alone[1])


def test_a_stop_token_ends_a_text_and_belongs_to_it(writer: Resident) -> None:
    (free,) = writer.continue_greedy([PROMPTS[0]], 12)
    stop = free[5]
    (cut,) = writer.continue_greedy([PROMPTS[0]], 12, stop_ids={stop})
    assert cut == free[: free.index(stop) + 1]
    assert len(cut) < len(free)


def test_a_stop_string_ends_a_text(writer: Resident) -> None:
    tokenizer = load_tokenizer(writer.network.source)
    (free,) = writer.continue_greedy([PROMPTS[0]], 40)
    printable = [i for i in range(5, 38) if tokenizer.decode(free[i : i + 2]).isascii()]
    assert printable, "choose another prompt"
    wanted = tokenizer.decode(free[printable[0] : printable[0] + 2])
    (cut,) = writer.continue_greedy([PROMPTS[0]], 40, stop_strings=[wanted], tokenizer=tokenizer)
    assert len(cut) < len(free)
    assert cut == free[: len(cut)]
    assert wanted in tokenizer.decode(cut)
    assert wanted not in tokenizer.decode(cut[:-1])


def test_weights_are_freed_and_shared_ones_read_once(network_of: NetworkOf) -> None:
    network = network_of("llama_tied")
    with resident(network) as writer:
        assert writer.model.lm_head.weight is writer.model.model.embed_tokens.weight  # type: ignore[union-attr]
        assert all(p.device.type == "cpu" for p in writer.model.parameters())
        kept = writer.model
    assert all(p.device.type == "meta" for p in kept.parameters())


def test_prompts_the_model_cannot_read_are_refused(writer: Resident) -> None:
    for bad in ([], [256], [-1]):
        with pytest.raises(InvalidText, match="prompt"):
            writer.continue_greedy([bad], 4)
    with pytest.raises(InvalidText, match="254 tokens and 3"):
        writer.continue_greedy([[1] * 254], 3)
    assert len(writer.continue_greedy([[1] * 254], 2)[0]) == 2
    with pytest.raises(InvalidText, match="0 to write"):
        writer.continue_greedy([[1]], 0)
    with pytest.raises(InvalidText, match="tokenizer"):
        writer.continue_greedy([[1]], 1, stop_strings=["x"])


def test_stop_tokens_come_from_the_generation_config_first(
    save_model: Callable[..., nn.Module], tmp_path: Path
) -> None:
    config = {
        "model_type": "llama", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 3,
        "pad_token_id": None,
    }  # fmt: skip
    save_model(config, tmp_path / "m")
    file = tmp_path / "m" / "generation_config.json"
    file.unlink(missing_ok=True)
    assert stop_ids(open_source(tmp_path / "m")) == {3}
    file.write_text('{"eos_token_id": [7, 8]}')
    assert stop_ids(open_source(tmp_path / "m")) == {7, 8}
    file.write_text("not json")
    assert stop_ids(open_source(tmp_path / "m")) == {3}
