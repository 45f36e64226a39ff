"""Layers whose weights stay what a file stores: a linear layer and a table, on one `Weight` that both may share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pennyweight.formats import Part
from pennyweight.numerics.products import Weight

CHUNK = 1 << 20  # weights decoded at once


@dataclass(frozen=True, eq=False)
class Decoded:
    """A weight no kernel takes: numbers are made of it at every call, some rows at a time.

    Args:
        part: what is stored; a code takes a byte.
        shape: `[out, in]`.
    """

    part: Part
    shape: tuple[int, int]

    @property
    def bytes(self) -> int:
        """Of everything stored, as it lies in memory."""
        return sum(tensor.nbytes for tensor in self.part.tensors.values())

    def product(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens out"]:
        """X Wᵀ in the type of x."""
        (rows, inputs), format = self.shape, self.part.format
        step = max(1, CHUNK // inputs) if format.rows_stand_alone else rows
        found = []
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            stored = format.rows(self.part.tensors, start, stop, self.shape)
            found.append(x @ format.decode(stored, (stop - start, inputs)).to(x.dtype).T)
        return torch.cat(found, -1)

    def rows(self, index: Int[Tensor, " count"]) -> Float[Tensor, "count n"]:
        """Rows by number, in float32."""
        format = self.part.format
        if not format.rows_stand_alone:
            return format.decode(self.part.tensors, self.shape)[index]
        by_row = {field.name: field.by_row for field in format.fields(self.shape)}
        stored = {key: tensor[index] if by_row[key] else tensor for key, tensor in self.part.tensors.items()}
        return format.decode(stored, (len(index), self.shape[1]))


class CompressedLinear(nn.Module):
    """`nn.Linear` on a weight of codes.

    Args:
        weight: of codes.
        dtype: of the arithmetic.
        bias: as that of the layer it stands for; may be on the meta device until it is read.
    """

    def __init__(self, weight: Weight, dtype: torch.dtype, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.codes, self.weight = weight, placeholder(dtype)
        self.bias = bias

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch out"]:
        """X Wᵀ + b."""
        result = self.codes.product(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
        return result if self.bias is None else result + self.bias


class CompressedTable(nn.Module):
    """`nn.Embedding` on a weight of codes.

    Args:
        weight: of codes.
        dtype: of what it returns.
    """

    def __init__(self, weight: Weight, dtype: torch.dtype) -> None:
        super().__init__()
        self.codes, self.weight = weight, placeholder(dtype)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch n"]:
        """The rows of these tokens."""
        return self.codes.rows(ids.flatten()).to(self.weight.dtype).reshape(*ids.shape, -1)


def placeholder(dtype: torch.dtype) -> Tensor:
    """What a model's code finds that asks a weight for its type: no numbers, so that nothing is computed with them."""
    return torch.empty(0, dtype=dtype, device="meta")
