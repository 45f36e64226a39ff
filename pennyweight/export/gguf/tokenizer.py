"""The tokenizer's key-values: BPE over bytes or characters out of tokenizer.json, or those of a GGUF file as they are.

Source: llama.cpp, `conversion/base.py` (what its converter writes) and `src/llama-vocab.cpp` (what its code splits text
by). It has no general pre-tokenizer: each way to split is built in under a name. The converter finds the name by a hash
of what a tokenizer makes of one text; here the pre-tokenizer itself is compared with those that the names stand for,
and one that is none of them is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from pennyweight.errors import InvalidModel
from pennyweight.export.gguf import sentencepiece
from pennyweight.export.gguf.sentencepiece import NORMAL, is_sentencepiece, listed
from pennyweight.export.gguf.stream import flag, int32s, string, strings, u32
from pennyweight.network.sources.gguf import GGUFSource
from pennyweight.network.sources.source import Derived, Source
from pennyweight.network.sources.tokenizer import load_tokenizer

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST
QWEN2 = CONTRACTIONS + WORDS + r"\p{N}" + REST
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


class Splitting(NamedTuple):
    """How a tokenizer cuts text before it merges: steps, normal form, and whether whole words need no merges."""

    steps: tuple[tuple[str, ...], ...]
    form: str | None = None
    ignore_merges: bool = False


GPT2 = ("bytes", "words")
NAMES = {
    Splitting((GPT2,)): "gpt-2",
    Splitting((("digits",), GPT2)): "smollm",
    Splitting((("split", LLAMA3), ("bytes",)), ignore_merges=True): "llama-bpe",
    Splitting((("split", QWEN2), ("bytes",)), form="NFC"): "qwen2",
    Splitting((("split", QWEN2), ("bytes",))): "qwen2",
}


def tokenizer_values(source: Source, tokens: int) -> dict[str, bytes]:
    """Key-values of the tokenizer.

    Args:
        source: of the model.
        tokens: rows of its embedding table.

    Raises:
        InvalidModel: no tokenizer, or one that llama.cpp cannot be told.
    """
    if (file := gguf_of(source)) is not None and "tokenizer.ggml.tokens" in file.metadata:
        return {key: value for key, value in file.key_values().items() if key.startswith("tokenizer.")}
    tokenizer = load_tokenizer(source)
    data = json.loads(tokenizer.to_str())
    pieces = is_sentencepiece(data)
    name = "" if pieces else _name_of(data, source)
    model = data["model"]
    words: dict[int, tuple[str, int]] = {number: (token, NORMAL) for token, number in model["vocab"].items()}
    for added in data["added_tokens"]:
        kind = CONTROL if added["special"] or _looks_special(added["content"]) else USER_DEFINED
        words[added["id"]] = (added["content"], kind)
    if (most := max(words)) >= tokens:
        raise _refusal(f"token {most} of an embedding table of {tokens}", "a row for every token", source)
    if pieces:
        found = sentencepiece.values(data, tokenizer, words, tokens, UNUSED)
        if isinstance(found, str):
            raise _refusal(found, "pieces joined by rank, blanks written as pieces, and nothing else", source)
        return {**found, **_special(source, tokenizer), **_template(source)}
    every = [words.get(number, (f"[PAD{number}]", UNUSED)) for number in range(tokens)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(name),
        "tokenizer.ggml.tokens": strings([token for token, _ in every]),
        "tokenizer.ggml.token_type": int32s([kind for _, kind in every]),
        "tokenizer.ggml.merges": strings(merges),
        **_special(source, tokenizer),
        **_template(source),
    }


def gguf_of(source: Source) -> GGUFSource | None:
    """The GGUF file that a source is, or is made from."""
    while isinstance(source, Derived):
        source = source.source
    return source if isinstance(source, GGUFSource) else None


def _name_of(data: Mapping[str, Any], source: Source) -> str:
    model = data["model"]
    if model["type"] != "BPE":
        raise _refusal(f"its tokenizer is {model['type']}", "BPE over bytes, or over characters with bytes", source)
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise _refusal(f"its tokenizer sets {option}", "plain byte-level BPE", source)
    found = Splitting(
        tuple(_step(step, source) for step in listed(data["pre_tokenizer"], "pretokenizers")), _form(data, source),
        bool(model.get("ignore_merges")),
    )  # fmt: skip
    if found not in NAMES:
        raise _refusal(
            f"llama.cpp has no name for how its tokenizer splits text: {' then '.join(map(' '.join, found.steps))}"
            + (f", after {found.form}" if found.form else ""),
            f"the pre-tokenizer of one of {', '.join(sorted(set(NAMES.values())))}", source,
        )  # fmt: skip
    return NAMES[found]


def _step(step: Mapping[str, Any], source: Source) -> tuple[str, ...]:
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return GPT2 if step["use_regex"] else ("bytes",)
    if kind == "Digits" and step["individual_digits"]:
        return ("digits",)
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return ("split", step["pattern"]["Regex"])
    raise _refusal(f"its tokenizer splits text by {kind} with options of its own", "a way that llama.cpp has", source)


def _form(data: Mapping[str, Any], source: Source) -> str | None:
    kinds = [step["type"] for step in listed(data["normalizer"], "normalizers")]
    if kinds in ([], ["NFC"]):
        return kinds[0] if kinds else None
    raise _refusal(f"its tokenizer normalizes text ({', '.join(kinds)})", "none, or NFC", source)


def _special(source: Source, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Numbers of special tokens, and which of them are put around a text."""
    settings = _settings(source)
    values, numbers = {}, {}
    for ours, theirs in SPECIAL.items():
        token = settings.get(f"{ours}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is None:
            number = source.config.get(f"{ours}_token_id")
            number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int):
            numbers[ours] = number
            values[f"tokenizer.ggml.{theirs}_token_id"] = u32(number)
    bare, whole = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    for bos, eos in ((False, False), (True, False), (False, True), (True, True)):
        if whole == [numbers.get("bos")] * bos + bare + [numbers.get("eos")] * eos:
            return {
                **values, "tokenizer.ggml.add_bos_token": flag(bos), "tokenizer.ggml.add_eos_token": flag(eos)
            }  # fmt: skip
    raise _refusal("its tokenizer puts tokens of its own around a text", "a first token, a last one, or none", source)


def _template(source: Source) -> dict[str, bytes]:
    content = source.auxiliary().get("chat_template.jinja")
    if content is not None:
        text = content.read_bytes() if isinstance(content, Path) else content
        return {"tokenizer.chat_template": string(text.decode())}
    template = _settings(source).get("chat_template")
    if isinstance(template, list):
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    return {"tokenizer.chat_template": string(template)} if isinstance(template, str) else {}


def _settings(source: Source) -> dict[str, Any]:
    content = source.auxiliary().get("tokenizer_config.json")
    if content is None:
        return {}
    try:
        found = json.loads(content.read_bytes() if isinstance(content, Path) else content)
    except ValueError:
        return {}  # optional, like what it says
    return found if isinstance(found, dict) else {}


def _looks_special(token: str) -> bool:
    """Tokens of chat templates are not always marked as special, and llama.cpp prints those that are not."""
    return token in ("<pad>", "<mask>") or (token.startswith("<|") and token.endswith("|>"))


def _refusal(happened: str, expected: str, source: Source) -> InvalidModel:
    return InvalidModel(
        happened, expected=expected, mend="start from a GGUF file of this model, or choose another engine",
        site=str(source.path),
    )  # fmt: skip
