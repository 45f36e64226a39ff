"""Temperature scaling: one number that repairs overconfidence and leaves every ranking as it is.

Source: Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017. arXiv:1706.04599.
Departs from it: the loss is convex in s = 1/T, so Newton steps inside a bracket take the place of LBFGS. With
z = logits and E_s the mean under softmax(s z), the loss mean(logsumexp(s z) - s t) has the slope mean(E_s[z] - t) and
the curvature mean(Var_s[z]), where t is the logit of the label, or the mean logit under the reference: the second gives
the T that minimises KL(reference || softmax(z / T)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pennyweight.errors import InvalidMeasurement
from pennyweight.methods.probability.checks import at_least, inside

ROWS = 64  # converted to float64 at once
Chunks = Callable[[], Iterable[tuple[Any, Any]]]


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """Find T such that softmax(logits / T) fits best; fit on calibration text, and certify afterwards.

    Args:
        lowest: smallest temperature considered, > 0.
        highest: largest temperature considered.
        tolerance: relative change of 1/T at which the search ends, > 0.
        passes: over the data at most, 1 or more; four to six are usual.
    """

    name: ClassVar[str] = "temperature-scaling"
    paper: ClassVar[str] = "arXiv:1706.04599"
    needs: ClassVar[frozenset[str]] = frozenset()
    lowest: float = 0.01
    highest: float = 100.0
    tolerance: float = 1e-8
    passes: int = 100

    def __post_init__(self) -> None:
        inside(self.lowest, "lowest", self.name, low=0.0, high=self.highest)
        inside(self.highest, "highest", self.name, low=self.lowest, high=float("inf"))
        inside(self.tolerance, "tolerance", self.name, low=0.0, high=1.0)
        at_least(self.passes, "passes", self.name, least=1)

    def fit(self, logits: Any, labels: Any) -> float:
        """The temperature with the smallest negative log-likelihood.

        Args:
            logits: or log-probabilities; arrays or tensors `[n, classes]`.
            labels: right classes `[n]`.

        Raises:
            InvalidMeasurement: as `fit_streaming`.
        """
        return self.fit_streaming(lambda: [(logits, labels)])

    def match(self, logits: Any, reference: Any) -> float:
        """The temperature with the smallest mean KL(reference || softmax(logits / T)); needs no labels.

        Args:
            logits: or log-probabilities of the compressed model `[n, classes]`.
            reference: log-probabilities of the reference `[n, classes]`.

        Raises:
            InvalidMeasurement: as `fit_streaming`.
        """
        return self.fit_streaming(lambda: [(logits, reference)])

    def fit_streaming(self, chunks: Chunks) -> float:
        """The same from rows that do not fit into memory together.

        Args:
            chunks: called once a pass; yields (rows `[n, classes]`, targets) in the same order each time. Targets are
                labels `[n]` (whole numbers) or reference log-probabilities `[n, classes]`.

        Raises:
            InvalidMeasurement: no rows, shapes that do not fit, values that are not finite, labels that are no class,
                or a loss without a minimum between `lowest` and `highest` (such as when every label has the largest
                logit: the loss falls for ever as T goes to zero).
        """
        low, high = 1 / self.highest, 1 / self.lowest
        s = min(max(1.0, low), high)
        for _ in range(self.passes):
            slope, curvature = self._derivatives(chunks, s)
            if slope > 0:
                high = s
            elif slope < 0:
                low = s
            else:
                # equal logits carry no information; otherwise this is the minimum to the last bit
                if curvature == 0:
                    break
                return 1 / s
            newton = s - slope / curvature if curvature > 0 else low - 1.0
            # a step out of the bracket, the nearest end of which may be far: halve it in the logarithm instead
            step = newton if low < newton < high else (low * high) ** 0.5
            done = abs(step - s) <= self.tolerance * s
            s = step
            if done:
                if min(s * self.highest, 1 / (self.lowest * s)) > 1 + 1e-6:
                    return 1 / s
                break
        raise InvalidMeasurement(
            f"no temperature between {self.lowest:g} and {self.highest:g} minimises the loss",
            expected="rows of which some are wrong and some are right, and whose logits differ",
            mend="fit on more text; on a handful of rows that are all right, any smaller T looks better",
            site=self.name,
        )

    def loss(self, chunks: Chunks, temperature: float) -> float:
        """Mean of logsumexp(z / T) - t / T in nats: the negative log-likelihood, or KL plus the reference's entropy.

        Raises:
            InvalidMeasurement: as `fit_streaming`; InvalidMethod: a temperature that is not above zero.
        """
        inside(temperature, "temperature", self.name, low=0.0, high=float("inf"))
        total, count = 0.0, 0
        for z, target in self._pieces(chunks):
            total += float(((z / temperature).logsumexp(-1) - target / temperature).sum())
            count += len(z)
        return total / count

    def _derivatives(self, chunks: Chunks, s: float) -> tuple[float, float]:
        slope, curvature, count = 0.0, 0.0, 0
        for z, target in self._pieces(chunks):
            weight = (s * z).softmax(-1)
            mean = (weight * z).sum(-1)
            slope += float((mean - target).sum())
            curvature += float((weight * (z - mean[:, None]).square()).sum())
            count += len(z)
        return slope / count, curvature / count

    def _pieces(self, chunks: Chunks) -> Iterable[tuple[Tensor, Tensor]]:
        """Rows in float64, shifted so that the largest logit is 0, with their target logits `[n]`."""
        seen = 0
        for rows, targets in chunks():
            rows, targets = torch.as_tensor(rows), torch.as_tensor(targets)
            if rows.dim() != 2 or rows.shape[1] < 2 or targets.shape not in (rows.shape[:1], rows.shape):
                raise self._refusal(f"rows of shape {list(rows.shape)} with targets of shape {list(targets.shape)}")
            for start in range(0, len(rows), ROWS):
                z, t = rows[start : start + ROWS].double(), targets[start : start + ROWS]
                z = z - z.amax(-1, keepdim=True)
                if not bool(torch.isfinite(z).all()):
                    raise self._refusal("a logit is NaN or infinite")
                seen += len(z)
                if t.dim() == 2:
                    # rows may carry the rounding of a float32 softmax; normalised again, they cost nothing
                    p = t.double().softmax(-1)
                    if not bool(torch.isfinite(p).all()):
                        raise self._refusal("a reference log-probability is NaN or infinite")
                    yield z, (p * z).sum(-1)
                    continue
                if t.is_floating_point() or not bool(((t >= 0) & (t < z.shape[1])).all()):
                    raise self._refusal(f"a label is not a class: {t.tolist()[:3]} ...")
                yield z, z.gather(-1, t.long()[:, None])[:, 0]
        if seen == 0:
            raise self._refusal("there are no rows")

    def _refusal(self, happened: str) -> InvalidMeasurement:
        return InvalidMeasurement(
            happened,
            expected="finite logits [n, classes], and labels [n] or reference log-probabilities [n, classes]",
            mend="look at how they were made; an iterator that is used up must be made anew on each call",
            site=self.name,
        )
