"""Shared fixtures: tiny random networks of several families, saved by transformers; text that their tokenizer can cut.

Shapes and types in the signatures of the rooms that tensors flow through are checked while tests run (jaxtyping and
beartype), and hypothesis draws the same examples for everybody: a failure that nobody can repeat helps nobody.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import install_import_hook

# Openings of texts are remembered per user; those of tests are nobody's.
STATE = os.environ["PENNYWEIGHT_STATE"] = tempfile.mkdtemp(prefix="pennyweight-state-")
sys.path.insert(0, str(Path(__file__).parent))  # so that tests find `reference`, whatever way pytest was started
import reference.typechecker  # noqa: F401

TENSORS = [
    "numerics",
    "formats",
    "statistics",
    "methods.activations",
    "methods.quantization",
    "methods.measurement",
    *(
        f"network.running.{room}"
        for room in ("affinity", "grams", "observe", "rounding", "routing", "shared_prefix", "stream")
    ),
]
ROOMS = [Path(__file__).parents[1] / "pennyweight" / room.replace(".", "/") for room in TENSORS]
assert all(room.is_dir() or room.with_suffix(".py").is_file() for room in ROOMS), (
    "a room moved: nothing is checked there"
)
# Before anything imports the package. Where values and not tensors flow, mypy has checked all there is to check.
install_import_hook([f"pennyweight.{room}" for room in TENSORS], "reference.typechecker.check")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from torch import nn  # noqa: E402

from pennyweight.corpus import Windows  # noqa: E402
from pennyweight.network.finding.trace import load_network  # noqa: E402
from pennyweight.network.network import Network  # noqa: E402
from pennyweight.network.sources.opening import open_source  # noqa: E402


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(STATE, ignore_errors=True)


settings.register_profile("pennyweight", deadline=None, derandomize=True, database=None)
settings.load_profile("pennyweight")
torch.set_num_threads(1)  # tiny tensors: on a busy machine, threads that wait for each other cost a hundredfold

SHAPE = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "tie_word_embeddings": True}
# Families differ in what surrounds their linear layers; nothing in the package may know which is which.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SHAPE, "tie_word_embeddings": False},
    "llama_tied": {"model_type": "llama", **SHAPE, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **SHAPE, "tie_word_embeddings": True},  # biases on q, k, v
    "qwen3": {"model_type": "qwen3", **SHAPE, "head_dim": 16, "tie_word_embeddings": False},  # norms on q and k
    "mistral": {"model_type": "mistral", **SHAPE, "sliding_window": 16, "tie_word_embeddings": False},
    "gemma2": {"model_type": "gemma2", **SHAPE, **GEMMA},  # soft caps, norms before and after, scaled embeddings
    "phi3": {"model_type": "phi3", **SHAPE, "tie_word_embeddings": False},  # fused qkv and gate-up
    "gpt2": {  # Conv1D layers, learned positions, LayerNorm
        "model_type": "gpt2", "vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
        "bos_token_id": None, "eos_token_id": None,
    },
}  # fmt: skip


def build(config: dict[str, Any]) -> nn.Module:
    """Build a causal language model of this configuration with random weights, float32, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():  # transformers draws first weights from the global stream; ours replace them all
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    generator = torch.Generator().manual_seed(20_221_031)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + noise if parameter.dim() < 2 else noise)
    return model.eval().requires_grad_(False)


def save(model: nn.Module, directory: Path) -> Path:
    """Save a model as transformers does, with a tokenizer beside it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(directory)  # type: ignore[operator]
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def byte_tokenizer() -> Tokenizer:
    """One token a byte: any text can be cut, and 256 tokens are all there are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def random_windows(count: int, length: int, *, vocabulary: int = 256, seed: int = 5) -> Windows:
    """Windows of random token ids, three to a document."""
    ids = torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))
    documents = torch.from_numpy(np.arange(count) // 3)
    return Windows(
        ids=ids, documents=documents, names=tuple(f"d{i}" for i in range(count)), source="random ids",
        split="calibration", fingerprint=f"random {count} {length} {seed}", dropped_tokens=0, text_bytes=count * length,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _own_openings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test opened is no second opening for another."""
    monkeypatch.setenv("PENNYWEIGHT_STATE", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], nn.Module]:
    """Get the model of a family, as transformers runs it; built once. Do not write to it."""
    built: dict[str, nn.Module] = {}

    def get(family: str) -> nn.Module:
        if family not in built:
            built[family] = build(FAMILIES[family])
        return built[family]

    return get


@pytest.fixture(scope="session")
def directory_of(
    model_of: Callable[[str], nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Get the directory the model of a family was saved to; saved once. Do not write to it."""
    saved: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in saved:
            saved[family] = save(model_of(family), tmp_path_factory.mktemp("models") / family)
        return saved[family]

    return get


@pytest.fixture(scope="session")
def network_of(directory_of: Callable[[str], Path]) -> Callable[[str], Network]:
    """Get the traced network of a family; traced once."""
    traced: dict[str, Network] = {}

    def get(family: str) -> Network:
        if family not in traced:
            traced[family] = load_network(open_source(directory_of(family)))
        return traced[family]

    return get


@pytest.fixture(scope="session")
def llama_directory(directory_of: Callable[[str], Path]) -> Path:
    """Save a tiny llama with a head of its own."""
    return directory_of("llama")


@pytest.fixture(scope="session")
def tied_llama_directory(directory_of: Callable[[str], Path]) -> Path:
    """Save a tiny llama whose head is its embedding."""
    return directory_of("llama_tied")


@pytest.fixture(scope="session")
def windows_of() -> Callable[..., Windows]:
    """Random windows of token ids: `windows_of(count, length, vocabulary=256, seed=5)`."""
    return random_windows


@pytest.fixture(scope="session")
def save_model() -> Callable[[dict[str, Any], Path], nn.Module]:
    """Build a model of any configuration, save it to a directory, and return it."""

    def make(config: dict[str, Any], directory: Path) -> nn.Module:
        model = build(config)
        save(model, directory)
        return model

    return make
