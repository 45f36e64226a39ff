"""What an allocation must respect, and what to do when nothing can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pennyweight.errors import InfeasibleBudget
from pennyweight.plan import Option


@dataclass(frozen=True)
class Limit:
    """An upper limit on the sum over all groups.

    Args:
        of: `damage` (KL, nats per token; the allocation then minimises bytes) or `bytes` (it minimises damage).
        at_most: the limit.
    """

    of: Literal["damage", "bytes"]
    at_most: float

    def cost(self, option: Option) -> float:
        """What the limit counts."""
        return option.damage if self.of == "damage" else float(option.bytes)

    def value(self, option: Option) -> float:
        """What is minimised under the limit."""
        return float(option.bytes) if self.of == "damage" else option.damage

    def check_feasible(self, table: Sequence[Sequence[Option]]) -> None:
        """Refuse a limit that no allocation meets.

        Raises:
            InfeasibleBudget: with the least that can be reached.
        """
        if not math.isfinite(self.at_most):
            raise InfeasibleBudget(f"{self.at_most} is not a limit on {self.of}", expected="a finite number")
        least = sum(min(self.cost(option) for option in options) for options in table)
        if least > self.at_most:
            raise InfeasibleBudget(
                f"no plan keeps {self.of} at or below {self.at_most:.6g}",
                expected=f"at least {least:.6g}, which is every group at its cheapest option",
                mend="raise the budget to that, or choose an engine that takes more (pennyweight inspect MODEL)",
            )
