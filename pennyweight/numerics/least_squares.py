"""Least squares under a gram matrix, one small system a row: multipliers that groups of columns share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-7  # of each diagonal entry: moves a solution by less than float32 does
MEMORY = 1 << 22  # numbers of the systems held at once


def group_steps(
    factors: Float[Tensor, "parameters out in"],
    change: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    groups: int,
) -> Float[Tensor, "parameters out groups"]:
    """What to add to the multipliers of groups of columns, so that each row's change · gram · changeᵀ is least.

    With D the factors of a row cut into groups, it solves (D gram Dᵀ) step = −D gram changeᵀ in float64. A multiplier
    of nothing (all its factors zero, or on inputs that are never active) stays where it is; of two that do the same
    thing, neither moves far.

    Args:
        factors: what each parameter is multiplied with.
        change: as it is with the parameters there are.
        gram: symmetric, positive semidefinite.
        groups: equal runs of columns.
    """
    kinds, rows, columns = factors.shape
    width, unknowns = columns // groups, kinds * groups
    steps = torch.empty(rows, unknowns, dtype=torch.float64)
    many = max(1, min(MEMORY // unknowns**2, MEMORY // (kinds * columns)))
    for start in range(0, rows, many):
        own = factors[:, start : start + many]
        system = own.new_empty(own.shape[1], kinds, groups, kinds, groups)
        for group in range(groups):
            inside = slice(group * width, (group + 1) * width)
            seen = own[:, :, inside] @ gram[inside]  # the group's share of D gram, before it is cut
            for kind in range(kinds):
                cut = (seen[kind] * own).reshape(kinds, -1, groups, width).sum(-1)
                system[:, kind, group] = cut.transpose(0, 1)
        pull = ((change[start : start + many] @ gram) * own).reshape(kinds, -1, groups, width).sum(-1)
        steps[start : start + many] = _solved(
            system.reshape(-1, unknowns, unknowns).double(), -pull.transpose(0, 1).reshape(-1, unknowns).double()
        )
    return steps.reshape(rows, kinds, groups).transpose(0, 1).float()


def _solved(system: Tensor, pull: Tensor) -> Tensor:
    """Scaled to a diagonal of ones, with a ridge on it."""
    size = system.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    size = torch.where(size > 0, size, torch.inf)
    scaled = (system + system.mT) / 2 / size[:, :, None] / size[:, None, :]
    scaled.diagonal(dim1=1, dim2=2).copy_(torch.ones(()) + RIDGE)
    found, _ = torch.linalg.solve_ex(scaled, pull / size)
    return torch.nan_to_num(found / size, 0.0, 0.0, 0.0)
