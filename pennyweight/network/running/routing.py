"""Where the tokens of each window are routed: how often every expert of every layer was chosen, in any module.

Experts are chosen by `topk` over as many scores as there are experts, for every token: that call is watched. A choice
among groups of experts first, as some families make it, is over fewer scores and is passed by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pennyweight.errors import InvalidModel
from pennyweight.network.network import Network

Routed = Callable[[Int[Tensor, "windows length"]], tuple[Tensor, Tensor]]


def experts_of(network: Network) -> frozenset[int]:
    """Sizes of the stacks of experts that a network has."""
    tensors = network.source.tensors
    return frozenset(
        tensors[network.stored_name(site.parameter)].shape[0] for site in network.sites if site.role == "experts"
    )


def routed(logits: Callable[[Tensor], Float[Tensor, "windows length vocabulary"]], experts: Collection[int]) -> Routed:
    """A model as `expert_balanced` asks for it.

    Args:
        logits: runs the model on windows of tokens.
        experts: how many experts a layer may have, as `experts_of` finds them.

    Returns:
        Windows -> log-probabilities of the next token of each, float32, and tokens by layer and expert; layers of fewer
        experts than others have are left out, with those that were chosen by something else.
    """

    @torch.no_grad()
    def run(ids: Int[Tensor, "windows length"]) -> tuple[Tensor, Tensor]:
        with _Choosing(ids.shape, experts) as mode:
            last = logits(ids)[:, -1]
        if not mode.counts:
            raise InvalidModel(
                f"no token chose among {sorted(experts)} experts", expected="a mixture of experts that uses topk",
                mend="choose another method of calibration", site="routing",
            )  # fmt: skip
        most = max(count.shape[-1] for count in mode.counts)
        counts = torch.stack([count for count in mode.counts if count.shape[-1] == most], 1)
        return last.float().log_softmax(-1), counts

    return run


class _Choosing(TorchFunctionMode):
    """Counts choices `[windows, experts]`, a layer after the other."""

    def __init__(self, shape: torch.Size, experts: Collection[int]) -> None:
        super().__init__()
        self.counts: list[Tensor] = []
        self._windows, self._tokens, self._experts = shape[0], shape.numel(), experts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "topk":
            scores, chosen = args[0] if args else (kwargs or {})["input"], result[1]
            size = scores.shape[-1]
            if size in self._experts and scores.numel() == size * self._tokens and chosen.shape[-1] < size:
                own = chosen.reshape(self._windows, -1)
                self.counts.append(torch.zeros(self._windows, size).scatter_add_(1, own, torch.ones(own.shape)))
        return result
