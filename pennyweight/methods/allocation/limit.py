"""What an allocation must respect, what it makes small under that, and what to do when nothing can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pennyweight.errors import InfeasibleBudget, InvalidMethod
from pennyweight.plan import Option

Quantity = Literal["damage", "bytes", "milliseconds"]


@dataclass(frozen=True)
class Limit:
    """An upper limit on the sum of a quantity over all groups.

    Args:
        of: `damage` (KL, nats per token), `bytes` on disk, or `milliseconds` a token.
        at_most: the limit.
    """

    of: Quantity
    at_most: float

    def cost(self, option: Option) -> float:
        """What the limit counts."""
        return float(getattr(option, self.of))

    def total(self, choice: Sequence[Option]) -> float:
        """What a choice adds up to."""
        return sum(self.cost(option) for option in choice)

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


@dataclass(frozen=True)
class Problem:
    """One quantity to make as small as it can be, and limits on others.

    Args:
        aim: what is minimised.
        limits: that must all hold.
    """

    aim: Quantity
    limits: tuple[Limit, ...]

    @classmethod
    def of(cls, limit: Limit, *more: Limit) -> Problem:
        """The usual one: the fewest bytes where damage is limited, the least damage where it is not."""
        limits = (limit, *more)
        return cls("bytes" if any(one.of == "damage" for one in limits) else "damage", limits)

    def value(self, option: Option) -> float:
        """What is minimised."""
        return float(getattr(option, self.aim))

    def total(self, choice: Sequence[Option]) -> float:
        """What is minimised, of a whole choice."""
        return sum(self.value(option) for option in choice)

    def fits(self, choice: Sequence[Option]) -> bool:
        """Whether a choice respects every limit."""
        return all(limit.total(choice) <= limit.at_most for limit in self.limits)

    def check_feasible(self, table: Sequence[Sequence[Option]]) -> None:
        """Refuse limits that no allocation meets even one at a time.

        Raises:
            InfeasibleBudget: with the least that can be reached.
        """
        for limit in self.limits:
            limit.check_feasible(table)

    def only(self, name: str) -> Limit:
        """The limit, for a method that can hold one.

        Raises:
            InvalidMethod: there are several, or none.
        """
        if len(self.limits) != 1:
            raise InvalidMethod(
                f"{name} holds one limit, and {len(self.limits)} were given",
                expected="an allocator that holds several", mend="--allocation integer_program", site=name,
            )  # fmt: skip
        return self.limits[0]


def undominated(options: Sequence[Option], problem: Problem) -> list[Option]:
    """Options that no other beats in everything that counts, cheapest by the first limit first."""
    counted = [*(limit.of for limit in problem.limits), problem.aim]

    def numbers(option: Option) -> list[float]:
        return [float(getattr(option, of)) for of in counted]

    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (*numbers(o), o.step.label())):
        mine = numbers(option)
        if not any(all(a <= b for a, b in zip(numbers(other), mine, strict=True)) for other in kept):
            kept.append(option)
    return kept
