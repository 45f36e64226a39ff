"""Models that learnt a little, texts, and artifacts made once and shared; do not write to any of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from end_to_end import world

from pennyweight.budget import Budget
from pennyweight.flow.compress import Outcome, compress

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
def trained(parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a trained model: `llama`, `tied` or `wide`."""
    import conftest as shared

    configurations = {"llama": LLAMA, "tied": {**LLAMA, "tie_word_embeddings": True}, "wide": WIDE}
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            model = shared.build(configurations[name])
            world.teach(model, shared.byte_tokenizer(), parts[:20])
            made[name] = shared.save(model, tmp_path_factory.mktemp("trained") / name)
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
    return compress(
        llama, tmp_path_factory.mktemp("outcome") / "small", budget=Budget.lose("3%"), calibration=text,
        settings=world.settings(),
    )  # fmt: skip


@pytest.fixture
def artifact(outcome: Outcome, tmp_path: Path) -> Path:
    """A copy of the main artifact, to damage."""
    return Path(shutil.copytree(outcome.out, tmp_path / "copy"))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[world.Nursery]:
    with world.nursery(tmp_path_factory.mktemp("nursery")) as made:
        yield made
