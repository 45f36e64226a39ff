"""BPE over characters with bytes to fall back on, as SentencePiece makes it (Llama 2, Mistral, Gemma), for llama.cpp.

Source: llama.cpp, `src/llama-vocab.cpp` (`llm_tokenizer_spm`), and SentencePiece's `bpe_model.cc`. Both join the two
neighbours whose piece has the highest score, the leftmost of equals, until none are left; what is then no piece becomes
bytes. tokenizer.json has no scores but the order of merges, which was made of them, so the negative rank of the first
merge that gives a piece serves as its score. Whether that splits text as the tokenizer does is tried on `PROBE`, by the
same procedure in Python: a tokenizer that does something else is refused.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from pennyweight.export.gguf.stream import flag, floats, int32s, string, strings

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a blank
NORMAL, UNKNOWN, BYTE = 1, 2, 6
NEVER = -1e9  # score of a piece that no merge gives
PROBE = (
    "The first  two spaces, then a line\nand 1,234.5 of it (that's all) -- na\u00efve caf\u00e9s, \u6771\u4eac "
    '\u0442\u0435\u0441\u0442, if (x<=y){\n\t\treturn "z";\n}\n \U0001f600 \u03b1\u03b2 under_score CamelCase   end '
)  # fmt: skip


def is_sentencepiece(data: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is BPE over characters that falls back on bytes."""
    model = data["model"]
    return model["type"] == "BPE" and bool(model.get("byte_fallback"))


def values(
    data: Mapping[str, Any], tokenizer: Tokenizer, words: Mapping[int, tuple[str, int]], tokens: int, unused: int
) -> Mapping[str, bytes] | str:
    """Key-values of such a tokenizer; or why llama.cpp would split text otherwise, in plain words.

    Args:
        data: tokenizer.json.
        tokenizer: the same, ready to be used.
        words: text and kind of every token by its number; those that were added have their kinds.
        tokens: rows of the embedding table.
        unused: kind of rows without a token.
    """
    prefix = _prefix(data)
    if isinstance(prefix, str):
        return prefix
    scores = _scores(data["model"]["merges"])
    every, unknown = [], data["model"].get("unk_token")
    for number in range(tokens):
        text, kind = words.get(number, (f"[PAD{number}]", unused))
        if kind == NORMAL:
            kind = BYTE if _is_byte(text) else kind
        every.append((text, UNKNOWN if text == unknown else kind))
    vocabulary = {text: number for number, (text, kind) in enumerate(every) if kind == NORMAL}
    if (
        split(PROBE, vocabulary, scores, {t: n for n, (t, _) in enumerate(every)}, prefix=prefix)
        != tokenizer.encode(PROBE, add_special_tokens=False).ids
    ):
        return "its tokenizer splits text otherwise than SentencePiece does"
    return {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": strings([text for text, _ in every]),
        "tokenizer.ggml.scores": floats([scores.get(text, 0.0 if kind != NORMAL else NEVER) for text, kind in every]),
        "tokenizer.ggml.token_type": int32s([kind for _, kind in every]),
        "tokenizer.ggml.add_space_prefix": flag(prefix),
    }


def split(
    text: str, vocabulary: Mapping[str, int], scores: Mapping[str, float], numbers: Mapping[str, int], *, prefix: bool
) -> list[int]:
    """What llama.cpp makes of a text without special tokens.

    Args:
        text: of any length.
        vocabulary: pieces that neighbours may become, with their numbers.
        scores: of pieces; others have the lowest.
        numbers: of all tokens, bytes among them.
        prefix: whether a blank is put before the text.
    """
    symbols: list[str] = list(((" " if prefix else "") + text).replace(" ", SPACE))
    before, after = list(range(-1, len(symbols) - 1)), [*range(1, len(symbols)), -1]
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (joined := symbols[left] + symbols[right]) in vocabulary:
            heapq.heappush(queue, (-scores.get(joined, NEVER), left, right, joined))

    for place in range(len(symbols) - 1):
        offer(place, place + 1)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        if after[left] != right or symbols[left] + symbols[right] != joined or not symbols[left] or not symbols[right]:
            continue  # one of them was joined with another one before
        symbols[left], symbols[right] = joined, ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    found: list[int] = []
    for symbol in filter(None, symbols):
        known = numbers.get(symbol)
        bytes_ = [numbers.get(f"<0x{byte:02X}>", -1) for byte in symbol.encode()]
        found += [known] if known is not None else bytes_
    return found


def _prefix(data: Mapping[str, Any]) -> bool | str:
    """Whether a blank is put before a text; or what else is done to it, in plain words."""
    normal, before = listed(data["normalizer"], "normalizers"), listed(data["pre_tokenizer"], "pretokenizers")
    prefix = False
    for step in normal:
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] != "Replace" or step["pattern"] != {"String": " "} or step["content"] != SPACE:
            return f"its tokenizer normalizes text by {step['type']}"
    for step in before:
        if step["type"] == "Metaspace" and step["replacement"] == SPACE and not step.get("split", True):
            prefix = step.get("prepend_scheme", "always") != "never"
        elif step["type"] != "Split" or step["pattern"] != {"String": " "} or not normal:  # there are no blanks left
            return f"its tokenizer splits text by {step['type']}"
    return prefix


def _scores(merges: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for rank, pair in enumerate(merges):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        found.setdefault(left + right, -float(rank))
    return found


def listed(value: Any, members: str) -> list[Any]:
    """The steps of a normalizer or a pre-tokenizer, which may be none, one or a sequence."""
    if value is None:
        return []
    return list(value[members]) if value["type"] == "Sequence" else [value]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
