"""Sample texts from a mixture of two models, a token at a time, and count what each of them thought of it.

Log-probabilities are summed in float64, up to and including the token that ends a text, and nothing after it: leaving
that token out, as is sometimes done, biases every estimate made with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.flow.sampling.generate import Resident

BATCH = 64  # texts written at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """Texts drawn from a proposal.

    Args:
        tokens: of each text, with the one that ended it.
        log_target: log-probability of each under the target `[n]`, float64.
        log_proposal: under the proposal `[n]`, float64.
    """

    tokens: list[list[int]]
    log_target: Tensor
    log_proposal: Tensor


def write(
    target: Resident, proposal: Resident | None, prompt: Sequence[int], uniforms: Tensor, *, mix: float, switch: int,
    temperature: float, stop: Sequence[int],
) -> Written:  # fmt: skip
    """Sample texts after one prompt from the token-level mixture of two models.

    Args:
        target: the model whose tail is asked for.
        proposal: the model that is mixed in, or None for plain samples.
        prompt: token ids.
        uniforms: random numbers in [0, 1), one a text and position `[n, max_new_tokens]`, float64: a text depends on
            its own row alone, however many are written at once.
        mix: probability of a token from the proposal, in [0, 1).
        switch: first position at which the target writes alone.
        temperature: of both.
        stop: tokens that end a text.

    Raises:
        InvalidText: a prompt the target cannot read, or has no room after.
        InvalidModel: the vocabularies differ.
    """
    target.checked(prompt, uniforms.shape[1])
    pieces = [
        _write(target, proposal if mix > 0 else None, prompt, rows, mix, switch, temperature, stop)
        for rows in torch.split(uniforms, BATCH)
    ]
    return Written(
        tokens=[tokens for piece in pieces for tokens in piece.tokens],
        log_target=torch.cat([piece.log_target for piece in pieces]),
        log_proposal=torch.cat([piece.log_proposal for piece in pieces]),
    )


@torch.no_grad()
def _write(
    target: Resident, proposal: Resident | None, prompt: Sequence[int], uniforms: Tensor, mix: float, switch: int,
    temperature: float, stop: Sequence[int],
) -> Written:  # fmt: skip
    count, longest = uniforms.shape
    tokens: list[list[int]] = [[] for _ in range(count)]
    log_p, log_q = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    ends = torch.tensor(stop, dtype=torch.long)
    alive = torch.arange(count)  # texts that have not ended, in the order of the caches' rows
    own, cache = target.start(prompt, count)
    other, other_cache = proposal.start(prompt, count) if proposal is not None and switch > 0 else (None, None)
    for position in range(longest):
        p = q = (own.double() / temperature).log_softmax(-1)
        if other is not None:
            if other.shape != own.shape:
                raise InvalidModel(
                    f"the models know {own.shape[1]} and {other.shape[1]} tokens", expected="one vocabulary",
                    mend="take a proposal made from the same model", site="sampling",
                )  # fmt: skip
            tempered = (other.double() / temperature).log_softmax(-1)
            q = torch.logaddexp(tempered + math.log(mix), p + math.log1p(-mix))
        chosen = pick(q, uniforms[alive, position])
        log_p[alive] += p.gather(1, chosen[:, None])[:, 0]
        log_q[alive] += q.gather(1, chosen[:, None])[:, 0]
        for text, token in zip(alive.tolist(), chosen.tolist(), strict=True):
            tokens[text].append(token)
        going = (~torch.isin(chosen, ends)).nonzero()[:, 0]
        if position + 1 == longest or len(going) == 0:
            break
        if position + 1 >= switch:
            other, other_cache = None, None  # the target writes alone: the proposal need not read on
        if len(going) < len(alive):
            alive, chosen = alive[going], chosen[going]
            cache.batch_select_indices(going)
            if other_cache is not None:
                other_cache.batch_select_indices(going)
        own, cache = target.step(chosen[:, None], cache)
        if proposal is not None and other_cache is not None:
            other, other_cache = proposal.step(chosen[:, None], other_cache)
    return Written(tokens=tokens, log_target=log_p, log_proposal=log_q)


def pick(log_probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One token a row by the inverse of the cumulative distribution `[n]`; never one of probability zero."""
    cumulative = log_probabilities.exp().cumsum(-1)
    wanted = uniforms[:, None] * cumulative[:, -1:]  # the sum is 1 up to rounding
    found = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    return found.clamp(max=log_probabilities.shape[1] - 1)
