"""Who gets what, as a problem: a table of options, limits, what is made small under them; and how a choice is tried.

A choice is a number a group: the place of its option in the table. A search does not know what a network is: it asks
for the KL of choices on so many tokens of a draw, and is told; that whoever answers has remembered an answer from an
earlier run makes no difference to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pennyweight.errors import InfeasibleBudget, InvalidMethod
from pennyweight.plan import Option

Table = Sequence[Sequence[Option]]
Choice = tuple[int, ...]
Quantity = Literal["damage", "bytes", "milliseconds", "memory"]


@dataclass(frozen=True)
class Limit:
    """An upper limit on the sum of a quantity over all groups.

    Args:
        of: `damage` (KL, nats per token), `bytes` on disk, `milliseconds` a token, or `memory` in the engine, bytes.
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

    def check_feasible(self, table: Table) -> None:
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

    def check_feasible(self, table: Table) -> None:
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


def options_of(table: Table, choice: Choice) -> tuple[Option, ...]:
    """What a choice stands for."""
    return tuple(options[index] for options, index in zip(table, choice, strict=True))


def choice_of(table: Table, options: Sequence[Option]) -> Choice:
    """The places of options in the table."""
    return tuple(list(row).index(option) for row, option in zip(table, options, strict=True))


class Trials(Protocol):
    """Measures what choices cost, end to end."""

    @property
    def most(self) -> int:
        """Tokens there are in one draw."""
        ...

    def measure(self, choices: Sequence[Choice], *, tokens: int, draw: int = 0) -> list[float]:
        """KL(reference || compressed) of each choice, nats per token, all on the same tokens.

        Args:
            choices: of the table.
            tokens: of the draw, at most `most`; fewer are the first of more.
            draw: number of a random order of the windows.
        """
        ...
