"""Models that learnt a little, texts, and artifacts made once and shared; do not write to any of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from end_to_end import world
from tokenizers import Tokenizer, pre_tokenizers
from torch import nn

from pennyweight.budget import Budget
from pennyweight.flow.compress import compress
from pennyweight.flow.delivery import Outcome

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
WIDE = {**LLAMA, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}  # what Marlin's tiles need


@pytest.fixture(scope="session")
def parts() -> list[str]:
    return world.documents(60, 5, seed=1)


@pytest.fixture(scope="session")
def text(parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_text(tmp_path_factory.mktemp("text") / "text.txt", parts)


@pytest.fixture(scope="session")
def trained(
    parts: list[str],
    save_model: Callable[[dict[str, Any], Path], nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Directory of a trained model: `llama`, `tied` or `wide`."""
    configurations = {"llama": LLAMA, "tied": {**LLAMA, "tie_word_embeddings": True}, "wide": WIDE}
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("trained") / name
            model = save_model(configurations[name], made[name])
            world.teach(model, Tokenizer.from_file(str(made[name] / "tokenizer.json")), parts[:20])
            model.save_pretrained(made[name])  # type: ignore[operator]
        return made[name]

    return get


@pytest.fixture(scope="session")
def llama(trained: Callable[[str], Path]) -> Path:
    return trained("llama")


@pytest.fixture(scope="session")
def wide(trained: Callable[[str], Path]) -> Path:
    return trained("wide")


@pytest.fixture(scope="session")
def outcome(llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The main job, done once: at most 3 % of perplexity, for transformers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENNYWEIGHT_STATE", str(tmp_path_factory.mktemp("state")))
        return compress(
            llama, tmp_path_factory.mktemp("outcome") / "small", budget=Budget.lose("3%"), calibration=text,
            settings=world.settings(),
        )  # fmt: skip


@pytest.fixture
def artifact(outcome: Outcome, tmp_path: Path) -> Path:
    """A copy of the main artifact, to damage."""
    return Path(shutil.copytree(outcome.out, tmp_path / "copy"))


@pytest.fixture(scope="session")
def for_vllm(wide: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The best model of a size, for an engine that fuses sites and takes few widths."""
    return compress(
        wide, tmp_path_factory.mktemp("vllm") / "small", budget=Budget.fit("400KB"), calibration=text,
        settings=world.settings(engine="vllm"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def by_bits(trained: Callable[[str], Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The best model at five bits a weight, embedding and head being one tensor."""
    budget = Budget(metric="bits", at_most=5.0, unit="bits per weight")
    return compress(
        trained("tied"), tmp_path_factory.mktemp("bits") / "small", budget=budget, calibration=text,
        settings=world.settings(),
    )  # fmt: skip


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="the gguf extra is not installed")
    return world.write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def from_gguf(gguf_file: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A GGUF file as input, with a text of its own for the certificate."""
    held_out = world.write_text(tmp_path_factory.mktemp("held") / "held.txt", world.documents(20, 4, seed=2))
    return compress(
        gguf_file, tmp_path_factory.mktemp("gguf") / "small", budget=Budget.lose("50%"), calibration=text,
        held_out=held_out, settings=world.settings(),
    )  # fmt: skip


@pytest.fixture(scope="session")
def splitting(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wide model with a tokenizer that splits text into words, as every one does that llama.cpp has a name for."""
    copy = Path(shutil.copytree(wide, tmp_path_factory.mktemp("splitting") / "model"))
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.save(str(copy / "tokenizer.json"))
    return copy


@pytest.fixture(scope="session")
def for_llama_cpp(splitting: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One GGUF file, of a network whose widths fit blocks of 256 here and there."""
    pytest.importorskip("gguf", reason="the gguf extra is not installed")
    return compress(
        splitting, tmp_path_factory.mktemp("llama_cpp") / "small", budget=Budget.lose("3%"), calibration=text,
        settings=world.settings(engine="llama.cpp"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def gguf_to_gguf(gguf_file: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A GGUF file made smaller: some of its types of five bits become types of four and a half."""
    return compress(
        gguf_file, tmp_path_factory.mktemp("gguf") / "small", calibration=text,
        budget=Budget(metric="bits", at_most=4.8, unit="bits per weight"), settings=world.settings(engine="llama.cpp"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[world.Nursery]:
    with world.nursery(tmp_path_factory.mktemp("nursery")) as made:
        yield made
