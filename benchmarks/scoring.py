"""How far a language model is from itself before: perplexity, KL and the same next token, one way for all."""

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pennyweight.network.network import Network
from pennyweight.network.running.run import materialised


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


def ours(network: Network, tokens: Tensor) -> Tensor:
    """Logits `[windows, length, tokens]` of our loader, float32."""
    with materialised(network, exact=False, dtype=torch.float32) as model, torch.no_grad():
        return torch.cat([model(input_ids=window[None], use_cache=False).logits.float() for window in tokens])


def kl(first: Tensor, second: Tensor) -> float:
    """Nats a token, of logits."""
    p, q = (logits.double().log_softmax(-1) for logits in (first, second))
    return float((p.exp() * (p - q)).sum(-1).mean())


def show(rows: list[dict[str, Any]]) -> None:
    """A table of whatever the rows hold."""
    table = Table(show_edge=False)
    headings = list(rows[0])
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        found = [row.get(heading, "") for heading in headings]
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in found))
    Console(width=170).print(table)
