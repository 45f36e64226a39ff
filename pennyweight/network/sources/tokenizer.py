"""The tokenizer that came with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pennyweight.errors import CorruptFile, InvalidModel
from pennyweight.network.sources.source import Source

# What pretraining put between documents. The eos_token of a chat model ends a turn instead.
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")


def load_tokenizer(source: Source) -> Tokenizer:
    """Load tokenizer.json, with truncation and padding switched off: both would change the text.

    Raises:
        InvalidModel: the model has no tokenizer.json.
        CorruptFile: the tokenizers package cannot read it.
    """
    content = source.auxiliary().get("tokenizer.json")
    if content is None:
        raise InvalidModel(
            "the model has no tokenizer.json",
            expected="the tokenizer in the form of the tokenizers package",
            mend="write it once: AutoTokenizer.from_pretrained(model).save_pretrained(model) with transformers",
            site=str(source.path),
        )
    try:
        text = (content.read_bytes() if isinstance(content, Path) else content).decode("utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise CorruptFile(
            f"the tokenizers package cannot read it: {error}",
            expected="a tokenizer.json as save_pretrained writes it",
            mend="download it again, or upgrade the tokenizers package",
            site=f"{source.path}: tokenizer.json",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def separator_id(source: Source, tokenizer: Tokenizer) -> int | None:
    """Find the token that stands between documents: <|endoftext|> if there is one, else the eos token, or None."""
    for token in SEPARATORS:
        known: int | None = tokenizer.token_to_id(token)
        if known is not None:
            return known
    configured = source.config.get("eos_token_id")
    if isinstance(configured, list):
        configured = configured[0] if configured else None
    if isinstance(configured, int):
        return configured
    return _named_eos(source, tokenizer)


def _named_eos(source: Source, tokenizer: Tokenizer) -> int | None:
    content = source.auxiliary().get("tokenizer_config.json")
    try:
        text = content.read_bytes() if isinstance(content, Path) else content or b"{}"
        settings: Any = json.loads(text)
    except ValueError:
        return None  # tokenizer_config.json is optional, and so is the separator
    token = settings.get("eos_token") if isinstance(settings, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    found: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return found
