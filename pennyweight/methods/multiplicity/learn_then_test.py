"""Learn then Test: of many configurations find those whose risk is under a limit, and take the smallest of them.

Source: Angelopoulos, Bates, Candès, Jordan, Lei. Learn then Test. 2021. arXiv:2110.01052; the
Hoeffding-Bentkus p-value is from Bates et al. Distribution-Free, Risk-Controlling Prediction Sets. 2021.
arXiv:2101.02703. The null of a configuration is that its risk exceeds the limit. All that are rejected with a small
family-wise error are safe together, so any choice among them is, the smallest too, and no order or monotonicity of the
risk is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.methods.multiplicity.familywise import Familywise, checked_p_values
from pennyweight.methods.multiplicity.fixed_sequence import FixedSequence
from pennyweight.methods.multiplicity.holm import Holm

SITE = "learn-then-test"


@dataclass(frozen=True, kw_only=True)
class LearnThenTest:
    """Test every configuration against the limit and keep those that are safe together.

    Args:
        method: the rule that controls the family-wise error; any object with this room's `rejected`.
    """

    name: ClassVar[str] = SITE
    paper: ClassVar[str] = "arXiv:2110.01052"
    needs: ClassVar[frozenset[str]] = frozenset()
    method: Familywise = field(default_factory=Holm)

    def rejected(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """Which configurations are safe `[K]`, by the method's rule; whether order matters is for it to say.

        Raises:
            InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
            InvalidBudget: alpha outside (0, 1).
        """
        return self.method.rejected(p_values, alpha)

    def safe(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """Which configurations keep every risk under its limit.

        Args:
            p_values: one a configuration `[K]`, or one a risk and configuration `[risks, K]`. A configuration is safe
                when all of its risks are, so its p-value is the largest of them (intersection-union).
            alpha: chance that any configuration called safe is not, in (0, 1).

        Returns:
            Whether each configuration is safe `[K]`.

        Raises:
            InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
            InvalidBudget: alpha outside (0, 1).
        """
        several = np.ndim(p_values) == 2
        p = checked_p_values(p_values, site=self.name, dimensions=2 if several else 1)
        return self.rejected(p.max(axis=0) if several else p, alpha)

    def along_path(self, path: NDArray[np.int64], p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """Walk a path over a grid of configurations as a fixed sequence, at full level, up to the first failure.

        Args:
            path: cells in the order they are tested, as positions in the grid read row by row; from `learn_path`.
            p_values: of the second half of the data, which the path has not seen `[rows, columns]`.
            alpha: chance that any configuration called safe is not, in (0, 1).

        Returns:
            Whether each cell is safe `[rows, columns]`; a cell that is not on the path is not.

        Raises:
            InvalidMeasurement: no p-values, one that is NaN or outside [0, 1], or a path with a cell twice or outside.
            InvalidBudget: alpha outside (0, 1).
        """
        p = checked_p_values(p_values, site=self.name, dimensions=2)
        cells = np.asarray(path)
        inside = cells.ndim == 1 and np.issubdtype(cells.dtype, np.integer) and len(cells) > 0
        if not (inside and cells.min() >= 0 and cells.max() < p.size and len(np.unique(cells)) == len(cells)):
            raise InvalidMeasurement(
                f"this is no path over {p.size} cells",
                expected=f"different whole numbers from 0 to {p.size - 1}, at least one",
                mend="take the path from learn_path, on a grid of the same shape",
                site=self.name,
            )
        result = np.zeros(p.size, dtype=bool)
        result[cells] = FixedSequence().rejected(p.ravel()[cells], alpha)
        return result.reshape(p.shape)


def hoeffding_bentkus(risks: ArrayLike, n: int, limit: float) -> NDArray[np.float64]:
    """P-values of "the risk exceeds the limit" from n independent losses in [0, 1], for any n.

    min(exp(-n h(min(r, limit), limit)), e P(Binomial(n, limit) <= ceil(n r))), with h the relative entropy of two
    coins: the first is sharp for small risks far from the limit, the second close to it.

    Args:
        risks: mean loss of each configuration, any shape, in [0, 1].
        n: losses each mean is taken of; >= 1.
        limit: of the risk, in (0, 1).

    Returns:
        One p-value a risk, in its shape.

    Raises:
        InvalidMeasurement: a risk that is NaN or outside [0, 1], or no losses.
        InvalidBudget: the limit is outside (0, 1).
    """
    r = np.asarray(risks, dtype=np.float64)
    if n < 1 or not ((r >= 0) & (r <= 1)).all():
        raise InvalidMeasurement(
            f"these are not means of {n} losses in [0, 1]",
            expected="risks from 0 to 1, of at least one loss",
            mend="divide losses by their largest possible value, and the limit too",
            site=SITE,
        )
    if not 0 < limit < 1:
        raise InvalidBudget(
            f"a risk limit of {limit:g} allows everything or nothing",
            expected="a number between 0 and 1",
            mend="divide the limit by the largest possible loss",
            site=SITE,
        )
    below = np.minimum(r, limit)
    hoeffding = np.exp(-n * (special.rel_entr(below, limit) + special.rel_entr(1 - below, 1 - limit)))
    # 29 wrong of 100 are a risk of .29, and 100 * .28 is 28.000000000000004 in float64: what lies within the rounding
    # of one division and one product of a whole number is that number, and only the rest is rounded up
    total = n * r
    whole = np.rint(total)
    count = np.where(np.abs(total - whole) <= 2 * np.spacing(total), whole, np.ceil(total))
    bentkus = np.e * stats.binom.cdf(count, n, limit)
    p: NDArray[np.float64] = np.minimum(1.0, np.minimum(hoeffding, bentkus))
    return p


def learn_path(p_values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order the cells of a grid (bits x group size, say) from the safest on, as the first half of the data has them.

    Args:
        p_values: of the first half `[rows, columns]`. The second half has to be independent of it.

    Returns:
        Cells `[rows * columns]` as positions in the grid read row by row, the smallest p-value first. Equal p-values,
        as where they all underflow to 0, go by distance from the first cell: let the grid begin with the safest.

    Raises:
        InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
    """
    p = checked_p_values(p_values, site=SITE, dimensions=2)
    rows, columns = np.indices(p.shape)
    return np.lexsort((rows.ravel(), (rows + columns).ravel(), p.ravel())).astype(np.int64)


def smallest(safe: NDArray[np.bool_], sizes: NDArray[np.float64]) -> tuple[int, ...] | None:
    """Where the smallest safe configuration is; the first of equals, None if none is safe.

    Args:
        safe: whether each configuration is safe, any shape.
        sizes: what each takes, such as bytes, in the same shape.

    Raises:
        InvalidMeasurement: shapes differ, or a size is not finite.
    """
    allowed, costs = np.asarray(safe, dtype=bool), np.asarray(sizes, dtype=np.float64)
    if allowed.shape != costs.shape or not np.isfinite(costs).all():
        raise InvalidMeasurement(
            f"sizes of shape {list(costs.shape)} for configurations of shape {list(allowed.shape)}, or one not finite",
            expected="one finite size a configuration",
            site=SITE,
        )
    if not allowed.any():
        return None
    flat = int(np.argmin(np.where(allowed, costs, np.inf)))
    return tuple(int(i) for i in np.unravel_index(flat, allowed.shape))
