"""The sweep of GPTQ: columns rounded one after the other, each error absorbed by the columns that come after it.

`GPTQ` and the methods that start from its codes share it; `gptq.py` names the source.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Columns
from pennyweight.numerics.cholesky import LARGEST_DAMPING

ORDERS = ("activity", "groups", "none")


def check_sweep(method: str, damping: float, chunk: int, rounds: int = 0) -> None:
    """See that a sweep can run with these.

    Raises:
        InvalidMethod: a damping that is none, a chunk without columns, or fewer rounds than none.
    """
    if not 0 < damping <= LARGEST_DAMPING or chunk < 1 or rounds < 0:
        raise InvalidMethod(
            f"damping={damping!r}, chunk={chunk!r}, rounds={rounds!r}",
            expected=f"a damping above 0 and up to {LARGEST_DAMPING:g}, a chunk of one or more, no negative rounds",
            mend=f"{method}(damping=0.01)", site=method,
        )  # fmt: skip


def column_order(gram: Float[Tensor, "in in"], order: str, width: int) -> Int64[Tensor, " in"]:
    """Inputs in the order a sweep takes them; see `GPTQ.order`."""
    if order == "none":
        return torch.arange(len(gram))
    active = gram.diagonal().argsort(descending=True, stable=True)
    if order == "activity":
        return active
    group, inverse = active // width, active.argsort()
    first = torch.full((int(group.max()) + 1,), len(gram)).scatter_reduce(
        0, torch.arange(len(gram)) // width, inverse, "amin"
    )
    return active[first[group].argsort(stable=True)]


def sweep(
    weight: Float[Tensor, "out in"],
    upper: Float[Tensor, "in in"],
    order: Int64[Tensor, " in"],
    reach: Callable[[int, Float[Tensor, "out chunk"]], Columns],
    chunk: int = 64,
) -> UInt8[Tensor, "out in"]:
    """Codes, column after column; every column's error goes to those that come after it.

    Args:
        weight: as it is.
        upper: the factor of `inverse_cholesky`, in this order.
        order: of the inputs.
        reach: scales for a chunk, from its place in the order and its weights as they are by then.
        chunk: columns between two updates of the rest.
    """
    W = weight.float().T[order].contiguous()  # [in, out]: a copy, arguments are never written to
    codes = torch.empty(W.shape, dtype=torch.uint8)
    for start in range(0, len(W), chunk):
        stop = min(start + chunk, len(W))
        columns = reach(start, W[start:stop].T)
        errors = torch.empty(stop - start, W.shape[1])
        rows = upper[start:stop].contiguous()  # it is stored by columns
        for i, column in zip(range(start, stop), order[start:stop].tolist(), strict=True):
            rounded = columns.encode(W[i], column)
            codes[column] = rounded
            error = torch.div(W[i] - columns.decode(rounded, column), rows[i - start, i], out=errors[i - start])
            W[i + 1 : stop].addr_(rows[i - start, i + 1 : stop], error, alpha=-1)
        W[stop:].addmm_(rows[:, stop:].T, errors, alpha=-1)  # one product for the whole chunk
    return codes.T.contiguous()
