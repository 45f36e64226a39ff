"""Formats whose codes stand for numbers that are stored with the tensor, or made of what is stored: a table a tile.

A kind of its own says how a table follows from the stored tensors (`tables`); rounding, sweeping over columns and
decoding are here. `Levels` is the case in which all tables are one list times a scale.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.formats.format import Part, Scalar
from pennyweight.formats.sharing import Sharing


class Tables(Scalar):
    """A table of numbers for every group, row or tensor. A kind has `sharing` among its parameters."""

    sharing: Sharing

    @abstractmethod
    def tables(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "down across levels"]:
        """For every tile the number of each code, in float32 and any order; tiles are rows, groups, or the tensor."""

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """The table's number of each code, in float32."""
        tables = self.tables(tensors)
        codes = tensors["codes"].reshape(*tables.shape[:2], -1).long()
        return tables.gather(-1, codes).reshape(shape)


@dataclass(frozen=True, eq=False)
class TableFit:
    """Such a format fitted to one weight.

    Args:
        format: the format.
        stored: its tensors, without the codes.
    """

    format: Tables
    stored: Mapping[str, Tensor]

    @cached_property
    def _ranked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each tile the numbers by code, the borders between them in ascending order, and the code of each rank."""
        values = self.format.tables(self.stored)
        ordered, codes = values.sort(dim=-1, stable=True)
        return values, (ordered[..., 1:] + ordered[..., :-1]) / 2, codes

    def columns(self, shape: tuple[int, ...]) -> TableColumns:
        """Tables laid out for a sweep over input columns."""
        values, borders, codes = (tile.transpose(0, 1).contiguous() for tile in self._ranked)
        return TableColumns(values, borders, codes, self.format.sharing.width(shape[1]))

    def round(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """Codes of the nearest numbers; what lies in the middle of two gets the lower one."""
        return self.round_tiles(self.format.sharing.split(weight.float())).reshape(weight.shape)

    def round_tiles(self, tiles: Float[Tensor, "down across n"]) -> UInt8[Tensor, "down across n"]:
        """The same for weights that lie tile by tile."""
        _, borders, codes = self._ranked
        return codes.gather(-1, torch.searchsorted(borders, tiles.contiguous())).to(torch.uint8)

    def part(self, codes: UInt8[Tensor, "out in"]) -> Part:
        """Codes and what tables are made of as one part of a compressed tensor."""
        return Part(self.format, {"codes": codes, **self.stored})


@dataclass(frozen=True, eq=False)
class TableColumns:
    """Tables for one input column of all rows at a time; one row of them where all outputs share a table."""

    values: Float[Tensor, "across down levels"]
    borders: Float[Tensor, "across down borders"]
    codes: Tensor
    size: int

    def encode(self, values: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Codes of one column of weights."""
        borders, codes = self.borders[column // self.size], self.codes[column // self.size]
        found = torch.searchsorted(borders, values.reshape(len(borders), -1).contiguous())
        return codes.gather(-1, found).flatten().float()

    def decode(self, codes: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Values of one column of codes."""
        values = self.values[column // self.size]
        return values.gather(-1, codes.long().reshape(len(values), -1)).flatten()
