"""Tokenizers as SentencePiece makes them, in GGUF files: split as the tokenizers package does, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pennyweight.errors import InvalidModel
from pennyweight.export.gguf.sentencepiece import BYTE, PROBE, SPACE, UNKNOWN, split
from pennyweight.export.gguf.tokenizer import tokenizer_values
from pennyweight.network.sources.source import SafetensorsSource

TEXTS = [
    "the cat sat on the mat and the dog sat on the cat", "there and back again, then there was the theatre",
    "it is what it is and that is that", "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "numbers 1 2 3 11 12 13 21 22 23 and (brackets) {braces}; x = y + z", "if (x <= y) { return z; }",
] * 4  # fmt: skip
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def pieces(*, prepend: bool, merges: str = "all") -> Tokenizer:
    """A tokenizer learnt from a few sentences; every way to make a piece of two others is a merge, as converters do."""
    learnt = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learnt.normalizer = normalizers.Replace(" ", SPACE)
    learnt.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False)
    )
    data = json.loads(learnt.to_str())["model"]
    vocabulary = data["vocab"]
    ranked = list(dict.fromkeys(["".join(pair) for pair in data["merges"]]))
    every = [
        (token[:cut], token[cut:]) for token in ranked for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]  # fmt: skip
    given_ = every if merges == "all" else [tuple(pair) for pair in data["merges"]][::-1]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=given_, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    made.normalizer = normalizers.Sequence(steps if prepend else steps[1:])
    made.decoder = decoders.Replace(SPACE, " ")
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.add_tokens(["<tool>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )  # fmt: skip
    return made


@pytest.fixture
def directory(llama_directory: Path, tmp_path: Path) -> Callable[[Tokenizer], SafetensorsSource]:
    """A model with another tokenizer."""

    def make(tokenizer: Tokenizer) -> SafetensorsSource:
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((llama_directory / name).read_bytes())
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
        return SafetensorsSource(tmp_path)

    return make


@pytest.mark.parametrize("prepend", [True, False])
def test_what_is_written_is_what_the_tokenizer_has(
    directory: Callable[[Tokenizer], SafetensorsSource], prepend: bool
) -> None:
    from pennyweight.export.gguf.stream import flag, string

    tokenizer = pieces(prepend=prepend)
    size = tokenizer.get_vocab_size()
    found = tokenizer_values(directory(tokenizer), size + 2)
    assert found["tokenizer.ggml.model"] == string("llama")
    assert found["tokenizer.ggml.add_space_prefix"] == flag(prepend)
    assert found["tokenizer.ggml.add_bos_token"] == flag(True)
    kinds = int_list(found["tokenizer.ggml.token_type"])
    assert len(kinds) == size + 2
    assert kinds[:3] == [UNKNOWN, 3, 3]
    assert kinds.count(BYTE) == 256
    assert kinds[-3:] == [4, 5, 5]
    assert len(int_list(found["tokenizer.ggml.scores"])) == size + 2


def int_list(value: bytes) -> list[int]:
    """Four bytes each, behind a header of sixteen."""
    return [int.from_bytes(value[i : i + 4], "little", signed=True) for i in range(16, len(value), 4)]


@pytest.fixture(scope="module")
def learnt() -> tuple[Tokenizer, dict[str, int], dict[str, float]]:
    tokenizer = pieces(prepend=True)
    data = json.loads(tokenizer.to_str())["model"]
    scores: dict[str, float] = {}
    for rank, pair in enumerate(data["merges"]):
        scores.setdefault("".join(pair), -float(rank))
    return tokenizer, data["vocab"], scores


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["the", " ", "cat", "a", "\n", "é", "東", "xyz", "  ", "that", "1", "😀", "("]), max_size=30
    )
)
def test_split_agrees_with_the_tokenizers_package(
    learnt: tuple[Tokenizer, dict[str, int], dict[str, float]], words: list[str]
) -> None:
    tokenizer, vocabulary, scores = learnt
    text = "".join(words)
    plain = {token: number for token, number in vocabulary.items() if not token.startswith("<")}
    if not text:  # an empty text gets no blank either
        return
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert split(text, plain, scores, vocabulary, prefix=True) == expected


def test_one_that_does_something_else_is_refused(directory: Callable[[Tokenizer], SafetensorsSource]) -> None:
    with pytest.raises(InvalidModel, match="otherwise than SentencePiece"):
        tokenizer_values(directory(pieces(prepend=True, merges="backwards")), 1000)
    lower: Any = pieces(prepend=True)
    lower.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", SPACE)])
    with pytest.raises(InvalidModel, match="normalizes text by Lowercase"):
        tokenizer_values(directory(lower), 1000)
    cut: Any = pieces(prepend=True)
    cut.pre_tokenizer = pre_tokenizers.Digits()
    with pytest.raises(InvalidModel, match="splits text by Digits"):
        tokenizer_values(directory(cut), 1000)


def test_blanks_by_metaspace(directory: Callable[[Tokenizer], SafetensorsSource]) -> None:
    from pennyweight.export.gguf.stream import flag

    tokenizer: Any = pieces(prepend=False)
    tokenizer.normalizer = None
    for scheme, prefix in (("first", True), ("never", False)):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
        found = tokenizer_values(directory(tokenizer), 1000)
        assert found["tokenizer.ggml.add_space_prefix"] == flag(prefix)
    assert "two spaces" in PROBE.replace("  ", " ")
