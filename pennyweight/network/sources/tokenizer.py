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


def as_chat(source: Source, message: str) -> str:
    """A user's message in the model's own chat template, up to where its answer begins.

    Raises:
        InvalidModel: there is no template, or it cannot be rendered.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = _settings(source)
    content = source.auxiliary().get("chat_template.jinja")
    template: Any = content.read_bytes() if isinstance(content, Path) else content
    template = template.decode("utf-8", errors="replace") if template else settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        raise InvalidModel(
            "the model has no chat template", expected="chat_template.jinja, or chat_template in tokenizer_config.json",
            mend="leave --chat out: a base model continues text", site=str(source.path),
        )  # fmt: skip
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: token for name in names if (token := _content(settings.get(name))) is not None}
    try:
        rendered = render_jinja_template(
            [[{"role": "user", "content": message}]], chat_template=template, add_generation_prompt=True, **special
        )
    except Exception as error:  # the template raises what it likes
        raise InvalidModel(
            f"its chat template cannot be rendered: {error}", expected="a template for a message of a user",
            mend="leave --chat out, and write what the template would", site=str(source.path),
        ) from error  # fmt: skip
    return str(rendered[0][0] if isinstance(rendered, tuple) else rendered[0])


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
    token = _content(_settings(source).get("eos_token"))
    found: int | None = tokenizer.token_to_id(token) if token is not None else None
    return found


def _settings(source: Source) -> dict[str, Any]:
    """What tokenizer_config.json holds; it is optional."""
    content = source.auxiliary().get("tokenizer_config.json")
    try:
        settings: Any = json.loads(content.read_bytes() if isinstance(content, Path) else content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _content(token: Any) -> str | None:
    """A special token, written as a string or as an object that holds one."""
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        return None
    try:
        token.encode()
    except UnicodeEncodeError:  # half of a pair, which JSON can write and no tokenizer knows
        return None
    return token
