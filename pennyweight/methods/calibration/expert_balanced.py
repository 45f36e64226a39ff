"""Calibrate on text that a mixture of experts writes itself, such that it uses its experts evenly (EBSS).

Source: Hu et al. MoEQuant: Enhancing Quantization for Mixture-of-Experts Large Language Models via Expert-Balanced
Sampling and Affinity Guidance. ICML 2025. arXiv:2505.03804, expert-balanced self-sampling: from a random first token,
beam search keeps at every step the beams of the lowest −(Σ log p) / length + σ / τ, with τ = 1.2 and
σ = √(E / (E − 1) · Σ (u − mean u)²), u the share of each of E experts in what a beam was routed to so far. σ is 0 where
all experts are used alike, and 1 where one is used alone.

Departs from it, or fills in what we could not establish (its sampler is not published): σ is the mean over the layers
that have experts, and is taken of a beam before its newest token, which was not routed yet; first tokens are drawn from
the pool, each but once as long as there are others; a beam is continued by as many tokens as there are beams; the best
beam is taken at the end.

When: experts of a model see too few tokens of a text to be rounded by them. Cost: a pass over all beams for every token
that is written, unless the model given keeps its state. Known failures: what is likeliest is repetitive, the more so
the smaller the model: a small Mixtral trained on bytes writes "the the the" at τ = 1.2, uses its experts less evenly
over such windows than over text, and loses twice as much when it is rounded by them
(`benchmarks/results/shelf_experts.json`); a smaller τ helps, not enough. The source finds gains on models of billions
of weights. Nothing may be certified on text that a model wrote itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.calibration.pool import check_share, drawn
from pennyweight.promises import Deterministic, Promise

# Windows of tokens -> log-probabilities of what comes next `[windows, vocabulary]`, and how many of its tokens each
# expert of each layer got `[windows, layers, experts]`.
Model = Callable[[Int[Tensor, "windows length"]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ExpertBalanced:
    """Let the model write some windows, likely text whose tokens are spread evenly over its experts.

    Args:
        share: of the windows that are written.
        beams: of the search, >= 1.
        temperature: τ, above 0: the smaller, the more balance counts beside likelihood.
    """

    name: ClassVar[str] = "expert_balanced"
    paper: ClassVar[str] = "arXiv:2505.03804"
    needs: ClassVar[frozenset[str]] = frozenset({"model"})
    reads: ClassVar[str] = "tokens"
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    share: float = 1.0
    beams: int = 4
    temperature: float = 1.2

    def __post_init__(self) -> None:
        check_share(self.share, self.name)
        if self.beams < 1 or not self.temperature > 0:
            raise InvalidMethod(
                f"beams={self.beams!r}, temperature={self.temperature!r}", expected="at least one beam, above zero",
                mend="expert_balanced()", site=self.name,
            )  # fmt: skip

    def degrade(
        self,
        pool: Int[Tensor, "n length"],
        *,
        generator: Generator,
        other: Tensor | None = None,
        model: Model | None = None,
    ) -> Int[Tensor, "n length"]:
        """The pool with some windows that the model wrote in place of its own.

        Raises:
            InvalidMethod: no model.
        """
        if model is None:
            raise InvalidMethod(
                "no model to write text", expected="log-probabilities of the next token, and where tokens are routed",
                mend="pass model=pennyweight.network.running.routing.routed(...)", site=self.name,
            )  # fmt: skip
        chosen = drawn(len(pool), self.share, generator)
        result = pool.clone()
        if bool(chosen.any()):
            known = torch.tensor(sorted({*pool.flatten().tolist()}))
            laps = -(-int(chosen.sum()) // len(known))
            first = torch.cat([known[torch.randperm(len(known), generator=generator)] for _ in range(laps)])
            result[chosen] = self.written(model, first[: int(chosen.sum())], pool.shape[1])
        return result

    def written(self, model: Model, first: Int[Tensor, " n"], length: int) -> Int[Tensor, "n length"]:
        """A window from each first token."""
        ids, total = first[:, None, None], torch.zeros(len(first), 1, dtype=torch.float64)
        for size in range(2, length + 1):
            log_p, routed = model(ids.flatten(0, 1))
            log_p = log_p.double().reshape(*ids.shape[:2], -1)
            spread = imbalance(routed).double().reshape(ids.shape[:2])
            more, token = log_p.topk(min(self.beams, log_p.shape[-1]), -1)
            sums = total[..., None] + more
            score = spread[..., None] / self.temperature - sums / size
            kept = score.flatten(1).sort(dim=1, stable=True).indices[:, : self.beams]
            beam = kept // token.shape[-1]
            before = ids.gather(1, beam[..., None].expand(-1, -1, ids.shape[-1]))
            ids = torch.cat([before, token.flatten(1).gather(1, kept)[..., None]], -1)
            total = sums.flatten(1).gather(1, kept)
        return ids[:, 0]


def imbalance(routed: Float[Tensor, "windows layers experts"]) -> Float[Tensor, " windows"]:
    """σ: 0 where all experts of a layer got as many tokens, 1 where one got all of them; the mean over layers."""
    experts = routed.shape[-1]
    share = routed / routed.sum(-1, keepdim=True).clamp(min=1)
    return (experts / max(1, experts - 1) * (share - share.mean(-1, keepdim=True)).square().sum(-1)).sqrt().mean(-1)
