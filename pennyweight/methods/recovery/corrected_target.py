"""Round again, for what layers really read: every layer aims at the reference's outputs on the inputs it gets now.

Source: the corrected target of input mismatch, as in Li et al. GPTAQ: Efficient Finetuning-Free Quantization for
Asymmetric Calibration. arXiv:2504.02692, and Zhang et al. Qronos. arXiv:2505.11695. Blocks compressed before a layer
change its inputs from X to X̃, and rounding W still compares with W X̃. The real matrix that is nearest to W X is
W* = W (XᵀX̃ + λ)(X̃ᵀX̃ + λ)⁻¹, and ‖X Wᵀ − X̃ Qᵀ‖² = ‖X̃ (W* − Q)ᵀ‖² + constant: so the quantizer of the plan, whichever
it is, rounds W* with the gram matrix of X̃.
Departs from them: GPTAQ carries a first-order term through the sweep of GPTQ; the exact target needs no change of any
quantizer. Layers are rounded anew in the order in which the block reaches them, those that read one tensor together.

When: two to four bits, before `end_to_end` or instead of it: no gradients, a few passes of each block. On a small Llama
it takes 40 to 60 % off GPTQ's KL, about as much as `block_wise`, in less time, and `end_to_end` gains more after it
than alone (`benchmarks/results/recovery_small.json`). Cost: a pass of a block over the text in the reference, some two
and a half of what is compressed, two gram matrices a layer, and its quantizer once more; what the layers of one block
read in the reference is in memory, in bfloat16. Known failures: W* fits
the text it was made of, more so the fewer the tokens; the batches held out tell, and such a block stays as it was. λ
has to stand in both factors, or W* shrinks towards zero. Only layers that are modules and read every token are seen, so
no experts: their codes stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Part
from pennyweight.methods.recovery.block_wise import relative_error
from pennyweight.piece import Piece, Weights


@dataclass(frozen=True, kw_only=True)
class CorrectedTarget:
    """Round W* in place of W, block after block.

    Args:
        damping: λ, as a share of mean(diag(X̃ᵀX̃)), > 0.
        strength: of the correction, 0 or more: 0 aims at W, 1 at W*.
        rounds: over a block, each with what its layers read after the one before it; 0 changes nothing.
        batches: of about a thousand tokens, that it is shown at most, besides those held out.
    """

    name: ClassVar[str] = "corrected_target"
    paper: ClassVar[str] = "arXiv:2504.02692"
    needs: ClassVar[frozenset[str]] = frozenset({"reads"})
    unit: ClassVar[Literal["block", "network"]] = "block"
    learns: ClassVar[bool] = False
    damping: float = 0.01
    strength: float = 1.0
    rounds: int = 1
    batches: int = 32

    def __post_init__(self) -> None:
        if not self.damping > 0 or not self.strength >= 0 or self.rounds < 0 or self.batches < 1:
            raise InvalidMethod(
                f"damping={self.damping!r}, strength={self.strength!r}, rounds={self.rounds!r}, "
                f"batches={self.batches!r}",
                expected="a damping above zero, no negative strength or rounds, and at least one batch",
                mend="corrected_target()", site=self.name,
            )  # fmt: skip

    def recover(
        self, piece: Piece, parts: Mapping[str, Part], weights: Weights, *, seed: int, advance: Callable[[], None]
    ) -> tuple[dict[str, Part], dict[str, Any]]:
        """What is stored then, and the relative squared error of the batches held out before and after.

        Raises:
            InvalidMethod: the piece does not say what its layers read, or cannot round.
        """
        if piece.reads is None or piece.store is None:
            raise InvalidMethod("this piece does not show what its layers read", expected="a block", site=self.name)
        start, found = time.process_time(), dict(parts)
        course, together = [before := held_out_error(piece, found, weights)], groups(piece, found, weights)
        for _ in range(self.rounds):
            for names in together:
                seen = moments(piece, found, weights, names)
                for name in names:
                    target = seen.target(weights[name].float(), self.damping, self.strength)
                    found[name] = piece.store(name, target, seen.gram / seen.count) or found[name]
            course.append(held_out_error(piece, found, weights))
        advance()
        record = {"before": before, "after": course[-1], "steps": self.rounds, "course": course,
                  "left": [name for name in parts if found[name] is parts[name]],
                  "seconds": time.process_time() - start}  # fmt: skip
        kept = course[-1] < before
        return found if kept else dict(parts), {**record, "kept": kept}


def groups(piece: Piece, parts: Mapping[str, Part], weights: Weights) -> list[list[str]]:
    """Weights whose products read one tensor, in the order in which the piece reaches them.

    Without those that do not read every token: which ones an expert gets may be others in the reference.
    """
    assert piece.reads is not None
    found, tokens = dict[tuple[int, ...], list[str]](), piece.target(0).shape[:-1].numel()
    for name, x in piece.reads(decoded(parts, weights), 0, parts.keys()).items():
        if len(x) == tokens:
            found.setdefault((x.data_ptr(), *x.shape), []).append(name)
    return list(found.values())


def moments(piece: Piece, parts: Mapping[str, Part], weights: Weights, names: Sequence[str]) -> Moments:
    """Of what some weights read now and in the reference, over all batches that are not held out."""
    assert piece.reads is not None
    values, (first, *_) = decoded(parts, weights), names
    found = Moments.of(weights[first].shape[1])
    for batch in range(piece.batches - piece.held_out):
        found.add(piece.reads(values, batch, names)[first], piece.reads(None, batch, names)[first])
    return found


@dataclass(eq=False)
class Moments:
    """Sums over tokens of X̃ᵀX̃ and of X̃ᵀX.

    Args:
        gram: `[in, in]`.
        cross: `[in, in]`.
        count: of tokens.
    """

    gram: Float[Tensor, "n n"]
    cross: Float[Tensor, "n n"]
    count: int = field(default=0)

    @classmethod
    def of(cls, channels: int) -> Moments:
        """Of no tokens yet."""
        return cls(torch.zeros(channels, channels), torch.zeros(channels, channels))

    def add(self, now: Float[Tensor, "tokens n"], meant: Float[Tensor, "tokens n"]) -> None:
        """Add some tokens, of any type."""
        now, meant = now.to(self.gram.dtype), meant.to(self.gram.dtype)
        self.gram.addmm_(now.T, now)
        self.cross.addmm_(now.T, meant)
        self.count += len(now)

    def target(self, weight: Float[Tensor, "out n"], damping: float, strength: float) -> Float[Tensor, "out n"]:
        """W* with λ = damping · mean(diag(X̃ᵀX̃)), or as much of the way to it as `strength` says."""
        gram, cross = self.gram.double(), self.cross.double()
        level = damping * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        gram.diagonal().add_(level)
        cross.diagonal().add_(level)
        moved: Tensor = torch.linalg.solve(gram, cross - gram) @ weight.double().T
        return weight + (strength * moved.T).to(weight.dtype)


def decoded(parts: Mapping[str, Part], weights: Weights) -> dict[str, Tensor]:
    """The values of what is stored."""
    return {name: part.format.decode(part.tensors, tuple(weights[name].shape)) for name, part in parts.items()}


@torch.no_grad()
def held_out_error(piece: Piece, parts: Mapping[str, Part], weights: Weights) -> float:
    """Squared error of the output over its square, the mean over the batches held out."""
    values, held = decoded(parts, weights), range(piece.batches - piece.held_out, piece.batches)
    return sum(float(relative_error(piece, values, batch)) for batch in held) / max(1, piece.held_out)
