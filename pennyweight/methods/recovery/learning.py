"""Weights that are learnt while they stay rounded: codes straight through, the parameters a tile shares exactly.

Source: Esser et al. Learned Step Size Quantization. arXiv:1902.08153; Chen et al. EfficientQAT. arXiv:2407.11062,
whose first phase trains weights, steps and zero points of a block and whose second one trains steps alone.
Departs from both: the gradient of a scale is taken with the codes held, which is what it is almost everywhere, and not
with the straight-through term of learned step sizes; hidden weights are counted in steps of their first grid, so that
one rate fits every layer and format; a code that its quantizer moved away from the nearest one starts in the middle of
its cell, where it is safe, and not where the weight was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidMethod
from pennyweight.formats import Linear, Part, Refittable, Scalar
from pennyweight.numerics.random import permutation
from pennyweight.piece import Piece, Weights

EDGE = 0.49  # of a step: how near to the edge of its cell a hidden weight may start
WARM_UP = 0.05  # share of the steps in which rates rise
BETAS = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast is learnt.

    Args:
        steps: of Adam, >= 0.
        batches: of the piece in each step, >= 1.
        rate: of hidden weights, in steps of their grid; 0 leaves every code as it is.
        scale_rate: of what tiles share, in steps of the outermost code; 0 leaves them.

    Raises:
        InvalidMethod: a negative one.
    """

    learns: ClassVar[bool] = True  # parameters of a format, which has to have some
    steps: int
    batches: int
    rate: float
    scale_rate: float

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batches < 1 or self.rate < 0 or self.scale_rate < 0:
            raise InvalidMethod(
                f"steps={self.steps!r}, batches={self.batches!r}, rate={self.rate!r}, scale_rate={self.scale_rate!r}",
                expected="steps and rates of 0 or more, and at least one batch a step",
                mend="leave them at their defaults",
            )  # fmt: skip


@dataclass(eq=False)
class Learned:
    """One weight that is learnt.

    A hidden weight is the value of the code it started with, under the parameters of now, plus `latent` steps of now:
    it moves with them, and only a latent that leaves its cell changes a code.

    Args:
        format: of it.
        fitted: the start.
        codes: of the start.
        start: its parameters `[parameters, down, across]`, float32.
        unit: a step of each tile, `[down, across]`.
        latent: distance of the hidden weight from the value of its first code, in steps, `[out, in]`.
        growth: change of the parameters, in units that move the outermost code by a step.
        free: whether codes may change.
    """

    format: Refittable
    fitted: Linear
    codes: Tensor
    start: Tensor
    unit: Tensor
    latent: Tensor
    growth: Tensor
    free: bool = True

    @classmethod
    def of(cls, part: Part, weight: Float[Tensor, "out in"], *, free: bool = True) -> Learned:
        """From what a quantizer stored of a weight.

        Raises:
            InvalidFormat: values of this format are not linear in parameters that can be chosen again.
        """
        format = part.format
        if not isinstance(format, Refittable):
            raise InvalidFormat(
                f"{part.format.label()} has no parameters that can be learnt",
                expected="integer grids, affine, ternary or residual binary codes, or vectors",
                mend="choose such a format, or no recovery",
            )  # fmt: skip
        fitted, codes = format.fitted(part.tensors), part.tensors["codes"]
        start = fitted.parameters()
        unit = start[0].abs().clamp(min=torch.finfo(torch.float32).tiny)
        away = weight.float() - format.decode(part.tensors, tuple(weight.shape))
        latent = away.div_(format.sharing.spread(unit, tuple(weight.shape))).clamp_(-EDGE, EDGE)
        free = free and isinstance(format, Scalar)
        latent.mul_(fitted.round(weight.float()) == codes if free else 0)
        return cls(format, fitted, codes, start, unit, latent, torch.zeros_like(start), free)

    @property
    def pace(self) -> Tensor:
        """What a growth of one changes the parameters by."""
        return self.unit / self.format.reach

    def dead(self) -> Float[Tensor, " out"]:
        """Sum over the inputs of all hidden weights that are rounded to zero; gradients flow to `latent`."""
        shape = tuple(self.latent.shape)
        with torch.no_grad():
            now, fitted = self.now(), self._fitted()
            zeros = (self.format.decode(now.tensors, shape) == 0).float()
            middle = self.format.decode(fitted.part(self.codes).tensors, shape).mul_(zeros).sum(1)
            steps = self.format.sharing.spread(fitted.parameters()[0].abs(), shape) * zeros
        return middle + (self.latent * steps).sum(1)

    def _fitted(self) -> Linear:
        return self.fitted.refitted(self.start + self.growth.detach() * self.pace)

    def value(self) -> Float[Tensor, "out in"]:
        """The rounded weight; gradients flow to `latent` and `growth`."""
        value: Tensor = _Rounded.apply(self.latent, self.growth, self)  # type: ignore[no-untyped-call]
        return value

    def now(self) -> Part:
        """What is stored."""
        fitted, shape = self._fitted(), tuple(self.latent.shape)
        part = fitted.part(self.codes)
        if not self.free:
            return part
        hidden = self.format.decode(part.tensors, shape)
        step = fitted.parameters()[0].abs()
        hidden.addcmul_(self.latent.detach(), self.format.sharing.spread(step, shape))
        return fitted.part(fitted.round(hidden))


class _Rounded(torch.autograd.Function):
    """Latent weights and parameters -> values of the nearest codes."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, _growth: Tensor, learned: Learned) -> Tensor:
        part = learned.now()
        ctx.learned, ctx.part = learned, part
        return learned.format.decode(part.tensors, tuple(latent.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        learned: Learned = ctx.learned
        sharing, (slope,) = learned.format.sharing, gradients
        for_latent = for_growth = None
        if ctx.needs_input_grad[1]:
            factors = learned.fitted.factors(ctx.part.tensors["codes"].float())
            tiles = [sharing.split(slope * factor).sum(-1) for factor in factors]
            for_growth = torch.stack(tiles).mul_(learned.pace)
        if ctx.needs_input_grad[0]:
            for_latent = slope * sharing.spread(learned.unit, tuple(slope.shape))
        return for_latent, for_growth, None


Loss = Callable[[Piece, Weights, int], Tensor]
Added = Callable[[Learned, float], Tensor]  # at a share of the training that is done


def learn(
    piece: Piece,
    parts: Mapping[str, Part],
    weights: Weights,
    loss: Loss,
    schedule: Schedule,
    *,
    seed: int,
    advance: Callable[[], None],
    added: Added | None = None,
) -> tuple[dict[str, Part], dict[str, Any]]:
    """Lower a loss of a piece, batch by batch in a random order; returns what is stored then, and what it was worth.

    The batches held out are measured before and after; where they did not gain, everything stays as it was.

    Args:
        piece: what is run.
        parts: what is stored of every weight now.
        weights: the same weights before they were compressed.
        loss: of a batch; it propagates gradients itself where grad is enabled, and returns its value.
        schedule: how long.
        seed: of the order of batches.
        advance: called after every step.
        added: what is added to the outputs of a weight's product while it is trained; never where it is measured.

    Raises:
        InvalidFormat: a format without parameters that can be learnt.
        InvalidMethod: nothing can be added to outputs of this piece.
    """
    start = time.process_time()
    learned = {name: Learned.of(part, weights[name], free=schedule.rate > 0) for name, part in parts.items()}
    before = measured(piece, learned, loss)
    groups = []
    for rate, leaves in (
        (schedule.rate, [one.latent for one in learned.values()]),
        (schedule.scale_rate, [one.growth for one in learned.values()]),
    ):
        if rate > 0:
            groups.append({"params": [leaf.requires_grad_() for leaf in leaves], "base": rate})
    seen: list[float] = []
    if groups and schedule.steps:
        optimiser = torch.optim.Adam(groups, lr=0.0, betas=BETAS, fused=True)
        order = endless(piece.batches - piece.held_out, seed)
        for step in range(schedule.steps):
            share = min(1.0, (step + 1) / max(1, round(WARM_UP * schedule.steps))) * (1 - step / schedule.steps)
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * share
            optimiser.zero_grad()
            for _ in range(schedule.batches):
                with torch.enable_grad():
                    values = {name: one.value() for name, one in learned.items()}
                    given = piece if added is None else _with(piece, learned, added, step / schedule.steps)
                    seen.append(float(loss(given, values, next(order))))
            optimiser.step()
            advance()
    after = measured(piece, learned, loss)
    record = {"before": before, "after": after, "steps": schedule.steps, "seconds": time.process_time() - start,
              "course": [round(value, 6) for value in seen]}  # fmt: skip
    if not after < before:
        return dict(parts), {**record, "kept": False}
    return {name: one.now() for name, one in learned.items()}, {**record, "kept": True}


def _with(piece: Piece, learned: Mapping[str, Learned], added: Added, done: float) -> Piece:
    if piece.run_with is None:
        raise InvalidMethod("nothing can be added to outputs of this piece", expected="a piece with run_with")
    vectors = {name: added(one, done) for name, one in learned.items()}
    run = piece.run_with
    return replace(piece, run=lambda weights, batch: run(weights, batch, vectors))


def measured(piece: Piece, learned: Mapping[str, Learned], loss: Loss) -> float:
    """Mean loss of the batches held out."""
    with torch.no_grad():
        values = {name: one.value() for name, one in learned.items()}
        held = range(piece.batches - piece.held_out, piece.batches)
        return sum(float(loss(piece, values, batch)) for batch in held) / max(1, piece.held_out)


def endless(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count` in a random order, and again in another one."""
    lap = 0
    while True:
        yield from permutation(count, seed, "batches", str(lap)).tolist()
        lap += 1
