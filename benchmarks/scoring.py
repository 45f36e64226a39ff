"""How far a language model is from itself before: perplexity, KL and the same next token, one way for all."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def scores(model: nn.Module, window: Tensor) -> Tensor:
    """Log-probabilities of every position but the last."""
    found: Tensor = model(input_ids=window[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    return found


def compared(model: nn.Module, test: Tensor, before: Sequence[Tensor]) -> dict[str, float]:
    """The model as it is now against the log-probabilities of all windows before.

    Args:
        model: run in its own type.
        test: windows of token ids.
        before: of each window what `scores` gave, in any type.
    """
    loss = base = kl = same = 0.0
    for window, kept in zip(test, before, strict=True):
        q, p, labels = scores(model, window), kept.float(), window[1:, None]
        loss -= float(q.gather(1, labels).double().sum())
        base -= float(p.gather(1, labels).double().sum())
        kl += float((p.exp() * (p - q)).double().sum())
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
    count = test[:, 1:].numel()
    return {
        "perplexity": float(torch.tensor(loss / count).exp()), "reference": float(torch.tensor(base / count).exp()),
        "kl": kl / count, "agreement": same / count,
    }  # fmt: skip
