"""Windows of a text as token ids, the same for every tool."""

from pathlib import Path

import torch
from tokenizers import Tokenizer


def windows(model: str, text: str, count: int, length: int = 512) -> torch.Tensor:
    """The first windows of a text `[n, length]`; no special tokens."""
    ids = Tokenizer.from_file(str(Path(model) / "tokenizer.json")).encode(
        Path(text).read_text(encoding="utf-8"), add_special_tokens=False
    )
    n = min(count, len(ids.ids) // length)
    return torch.tensor(ids.ids[: n * length]).view(n, length)
