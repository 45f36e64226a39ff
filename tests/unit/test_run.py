"""Continuations: the tokens transformers writes, where two part, and what is refused before weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pennyweight.cli import main
from pennyweight.errors import InvalidMeasurement, InvalidMethod, InvalidModel, InvalidText
from pennyweight.flow.sampling.run import parting, run
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.tokenizer import load_tokenizer

PROMPT = "The capital of France is"
DirectoryOf = Callable[[str], Path]


@pytest.fixture
def other(llama_directory: Path, tmp_path: Path) -> Path:
    """The same weights, but for the head."""
    shutil.copytree(llama_directory, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors["lm_head.weight"] += 0.03 * torch.randn(256, 64, generator=torch.Generator().manual_seed(4))
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    return tmp_path / "other"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_likeliest_tokens_are_those_of_transformers(
    family: str, directory_of: DirectoryOf, model_of: Callable[[str], nn.Module]
) -> None:
    pieces: list[tuple[int, str]] = []
    found = run(directory_of(family), PROMPT, tokens=20, dtype="float32", say=lambda *piece: pieces.append(piece))
    tokenizer = load_tokenizer(open_source(directory_of(family)))
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    theirs = model_of(family).generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=0
    )
    assert found.written.tokens == theirs[0, ids.shape[1] :].tolist()
    assert found.prompt_tokens == ids.shape[1]
    assert "".join(text for _, text in pieces) == found.written.text
    assert {which for which, _ in pieces} == {0}
    assert found.written.weights > 0
    assert found.written.peak > found.written.weights
    assert found.beside is None
    assert found.parts_at is None


def test_samples_follow_from_the_seed_and_the_temperature(llama_directory: Path) -> None:
    def tokens(seed: int, temperature: float) -> list[int]:
        return run(llama_directory, PROMPT, tokens=16, seed=seed, temperature=temperature).written.tokens

    assert tokens(1, 1.0) == tokens(1, 1.0) != tokens(2, 1.0)
    assert tokens(1, 1e-6) == tokens(1, 0.0)


def test_two_models_beside_each_other(llama_directory: Path, other: Path) -> None:
    same = run(llama_directory, PROMPT, tokens=12, beside=llama_directory, temperature=1.0)
    assert same.beside is not None
    assert same.beside.tokens == same.written.tokens
    assert same.parts_at is None
    apart = run(llama_directory, PROMPT, tokens=40, beside=other, dtype="float32")
    assert apart.beside is not None
    assert apart.parts_at is not None
    assert apart.there is not None
    at = apart.parts_at
    assert apart.written.tokens[:at] == apart.beside.tokens[:at]
    assert apart.written.tokens[at] != apart.beside.tokens[at]
    assert apart.written.tokens == run(llama_directory, PROMPT, tokens=40, dtype="float32").written.tokens


def test_where_texts_part() -> None:
    assert parting([1, 2], [1, 2]) is None
    assert parting([1, 2], [1, 3]) == 1
    assert parting([1, 2], [1, 2, 5]) == 2


def test_the_command_line(llama_directory: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(llama_directory), PROMPT, "--tokens", "8", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["written"]["tokens"]) == 8
    assert main(["run", str(llama_directory), PROMPT, "--tokens", "8"]) == 0
    said = capsys.readouterr()
    assert said.out == PROMPT + found["written"]["text"] + "\n"
    assert "ms a token" in said.err
    assert "bfloat16" in said.err
    assert main(["run", str(llama_directory), PROMPT, "--tokens", "40", "--beside", str(other), "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{llama_directory}:\n{PROMPT}")
    assert f"\n\n{other}:\n{PROMPT}" in said.out
    assert "They part at token" in said.out
    assert said.err == ""


def test_a_chat_template_frames_the_prompt(llama_directory: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama_directory, tmp_path / "chat")
    with pytest.raises(InvalidModel, match="no chat template"):
        run(model, "hello", chat=True)
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    (model / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}answer: {% endif %}")
    (model / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    assert run(model, "hello", tokens=1, chat=True).prompt == "<s>[user: hello]answer: "
    (model / "chat_template.jinja").write_text("{{ raise_exception('not for users') }}")
    with pytest.raises(InvalidModel, match="not for users"):
        run(model, "hello", chat=True)


def test_what_cannot_be_run_is_refused_before_weights_are_read(
    llama_directory: Path, tmp_path: Path, save_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pennyweight.flow.sampling.run.runnable", None)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidMethod, match="temperature"):
            run(llama_directory, PROMPT, temperature=temperature)
    with pytest.raises(InvalidText, match="empty prompt"):
        run(llama_directory, "")
    with pytest.raises(InvalidText, match="240 to write"):
        run(llama_directory, PROMPT, tokens=240)
    bare = shutil.copytree(llama_directory, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(InvalidModel, match=r"no tokenizer\.json"):
        run(bare, PROMPT)
    config = {
        "model_type": "llama", "vocab_size": 200, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None,
        "pad_token_id": None,
    }  # fmt: skip
    save_model(config, tmp_path / "narrow")
    with pytest.raises(InvalidMeasurement, match="vocabularies"):
        run(llama_directory, PROMPT, beside=tmp_path / "narrow")
