"""What formats an engine reads, as data; and which of them a plan may choose from for given widths."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from pennyweight.errors import InvalidFormat
from pennyweight.formats import Dense, Format, Grid, KQuant, Legacy
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.gguf.blocks import Blocks
from pennyweight.formats.passing import Passing

BITS = (2, 3, 4, 5, 6, 8)
LARGE = 4096  # outputs that are enough for every format
GROUPS = (32, 64, 96, 128, 192)


@runtime_checkable
class Contract(Protocol):
    """One kind of formats, and which of them an engine reads."""

    @property
    def kinds(self) -> tuple[type[Format], ...]:
        """Classes of the formats on the menu: a quantizer that writes for this engine takes them all."""
        ...

    def refuses(self, engine: str, format: Format, shape: tuple[int, int], dtypes: frozenset[str]) -> str | None:
        """Why a weight of this shape cannot be in this format, in plain words; None when it can.

        Args:
            engine: its name.
            format: not dense.
            shape: of the weight, `[out, in]`.
            dtypes: that the engine takes for what is not codes.
        """
        ...

    def holding(self, columns: int, dtype: str, width: int) -> tuple[Format, ...]:
        """Formats that may hold what is stored with one scale for `width` inputs, or more, as it is.

        Args:
            columns: inputs of the site.
            dtype: of scales that have no type of their own.
            width: a divisor of the inputs.
        """
        ...

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Format, ...]:
        """Formats that fit all of the given input sizes and are worth choosing from.

        Args:
            columns: inputs of every site that is to get one format.
            dtype: of scales that have no type of their own.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Grids:
    """Integers with scales a row or a group.

    Args:
        bits: code widths with a fixed zero point.
        asymmetric_bits: code widths with stored zero points; empty when it loads none.
        group_sizes: inputs that may share a scale; None for any number that divides the inputs.
        rows: whether it reads one scale for a whole row.
        offered: code widths on the menu; None for all.
        whole_bytes: whether the codes that share a scale must fill whole bytes.
    """

    bits: frozenset[int]
    asymmetric_bits: frozenset[int]
    group_sizes: frozenset[int] | None
    rows: bool = True
    offered: frozenset[int] | None = None
    whole_bytes: bool = False

    @property
    def kinds(self) -> tuple[type[Format], ...]:
        """Integer grids."""
        return (Grid,)

    def refuses(self, engine: str, format: Format, shape: tuple[int, int], dtypes: frozenset[str]) -> str | None:
        """Width, zero points, groups, type of the scales."""
        if not isinstance(format, Grid) or not format.rows_stand_alone:
            return f"{engine} reads integers with scales a row or a group, not {format.label()}"
        widths, words = (self.bits, "") if format.symmetric else (self.asymmetric_bits, " with zero points")
        if not widths:
            return f"{engine} cannot load stored zero points"
        if format.bits not in widths:
            return f"{engine} reads codes of {_listed(widths)} bits{words}, not {format.bits}"
        if format.group_size is None and not self.rows:
            return f"{engine} reads groups of {_listed(self.group_sizes or frozenset())}, no whole rows"
        if format.group_size is not None and shape[1] % format.group_size:
            return f"{shape[1]} inputs do not split into groups of {format.group_size}"
        if format.group_size is not None and self.group_sizes is not None and format.group_size not in self.group_sizes:
            whole = " or whole rows" if self.rows else ""
            return f"{engine} reads groups of {_listed(self.group_sizes)}{whole}, not {format.group_size}"
        if self.whole_bytes and (size := format.group_size or shape[1]) * format.bits % 8:
            return f"{size} codes of {format.bits} bits fill no whole bytes, as {engine} needs"
        if format.scale_dtype not in dtypes:
            return f"{engine} takes no scales in {format.scale_dtype}"
        return None

    def holding(self, columns: int, dtype: str, width: int) -> tuple[Grid, ...]:
        """All widths, a row where that is what shares a scale, and groups within those that do."""
        sizes: list[int | None] = [g for g in sorted({width, *(self.group_sizes or GROUPS)}) if width % g == 0]
        return tuple(
            Grid(bits=bits, group_size=size, symmetric=symmetric, scale_dtype=dtype)
            for symmetric, widths in ((True, self.bits), (False, self.asymmetric_bits))
            for bits in sorted(widths)
            for size in ([None, *sizes] if width == columns else sizes)
        )

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Grid, ...]:
        """Of `grids`, those of widths it reads and does well."""
        found = grids(columns, dtype) if self.rows else in_groups(columns, dtype, self.group_sizes or frozenset())
        widths = {True: self.bits, False: self.asymmetric_bits}
        fitting = [
            g for g in found
            if not self.whole_bytes or not any((g.group_size or count) * g.bits % 8 for count in columns)
        ]  # fmt: skip
        return tuple(
            g for g in fitting if g.bits in widths[g.symmetric] and (self.offered is None or g.bits in self.offered)
        )


@dataclass(frozen=True, kw_only=True)
class BlockTypes:
    """GGUF's block types.

    Args:
        loads: every type it loads.
        offered: those worth choosing from, by the inputs a block has; where wide blocks fit, narrow ones are left out
            unless they are of a width that no wide one has.
        narrow_too: types of narrow blocks that are offered where wide ones fit.
    """

    loads: tuple[Blocks, ...]
    offered: tuple[Blocks, ...]
    narrow_too: tuple[Blocks, ...] = ()

    @property
    def kinds(self) -> tuple[type[Format], ...]:
        """Classes of the types that are offered."""
        return tuple(dict.fromkeys(type(format) for format in self.offered))

    def refuses(self, engine: str, format: Format, shape: tuple[int, int], dtypes: frozenset[str]) -> str | None:
        """Type, and whether rows split into its blocks; scales have types of their own."""
        del dtypes
        if not isinstance(format, Blocks):
            return f"{engine} reads the block types of GGUF, not {format.label()}"
        if format not in self.loads:
            return f"{engine} does not load {format.label()}"
        if shape[1] % format.inputs_multiple:
            return f"{shape[1]} inputs do not split into blocks of {format.inputs_multiple}, as {format.label()} has"
        return None

    def holding(self, columns: int, dtype: str, width: int) -> tuple[Blocks, ...]:
        """Every type whose blocks fit."""
        del dtype, width
        return tuple(format for format in self.loads if columns % format.inputs_multiple == 0)

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Blocks, ...]:
        """The widest blocks that divide all of the inputs."""
        del dtype
        fits = [f for f in self.offered if not any(count % f.inputs_multiple for count in columns)]
        widest = max((format.inputs_multiple for format in fits), default=0)
        return tuple(f for f in fits if f.inputs_multiple == widest or f in self.narrow_too)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Formats one by one, read and not offered: a plan may name them.

    Args:
        loads: every format; scales in a type of 16 or 32 bits may be in any such type that the engine takes.
    """

    loads: tuple[Format, ...]

    @property
    def kinds(self) -> tuple[type[Format], ...]:
        """None: nothing is offered."""
        return ()

    def refuses(self, engine: str, format: Format, shape: tuple[int, int], dtypes: frozenset[str]) -> str | None:
        """Kind, type of the scales, and whether it fits."""
        if format not in [_with_scales(loaded, format) for loaded in self.loads]:
            return f"{engine} does not read {format.label()}"
        scales = getattr(format, "scale_dtype", "")
        if scales in DTYPES and scales not in dtypes:
            return f"{engine} takes no scales in {scales}"
        try:
            format.stored_bits(shape)
        except InvalidFormat as error:
            return error.happened
        return None

    def holding(self, columns: int, dtype: str, width: int) -> tuple[Format, ...]:
        """All of them, with scales in the type of the model where they are in such a type."""
        del columns, width
        return tuple(_in(loaded, dtype) for loaded in self.loads)

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Format, ...]:
        """Nothing."""
        del columns, dtype
        return ()


@dataclass(frozen=True)
class Either:
    """Several contracts: what any of them reads, the engine reads."""

    contracts: tuple[Contract, ...]

    @property
    def kinds(self) -> tuple[type[Format], ...]:
        """Classes of the formats that are offered."""
        return tuple(dict.fromkeys(kind for contract in self.contracts for kind in contract.kinds))

    def refuses(self, engine: str, format: Format, shape: tuple[int, int], dtypes: frozenset[str]) -> str | None:
        """The first contract's reason, where the format is of a kind that is on its menu; else the last one's."""
        reasons = [contract.refuses(engine, format, shape, dtypes) for contract in self.contracts]
        if None in reasons:
            return None
        own = (r for r, c in zip(reasons, self.contracts, strict=True) if isinstance(format, c.kinds))
        return next(own, reasons[-1])

    def holding(self, columns: int, dtype: str, width: int) -> tuple[Format, ...]:
        """What any of them offers."""
        return tuple(format for contract in self.contracts for format in contract.holding(columns, dtype, width))

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Format, ...]:
        """All of their menus."""
        return tuple(format for contract in self.contracts for format in contract.menu(columns, dtype))


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Products of rounded weights and rounded inputs that an engine has kernels for.

    Args:
        weights: formats, whatever 16 or 32-bit type their scales are in.
        inputs: roundings of what the layer reads; each goes with each of the weights.
    """

    weights: tuple[Format, ...]
    inputs: tuple[Passing, ...]

    def takes(self, format: Format, passing: Passing) -> bool:
        """Whether these two meet in one of its products."""
        return passing in self.inputs and format in [_with_scales(weight, format) for weight in self.weights]


@dataclass(frozen=True, kw_only=True)
class Floats:
    """Floats alone: what was compressed elsewhere is stored as its numbers; nothing is chosen from."""

    @property
    def kinds(self) -> tuple[type[Format], ...]:
        """Floats."""
        return (Dense,)

    def refuses(self, engine: str, format: Format, shape: tuple[int, int], dtypes: frozenset[str]) -> str | None:
        """Everything else: floats themselves are asked about before."""
        del shape, dtypes
        return f"{engine} reads floats, not {format.label()}"

    def holding(self, columns: int, dtype: str, width: int) -> tuple[Dense, ...]:
        """The type of the model, and narrower ones that it holds."""
        del columns, width
        return tuple(Dense(dtype=name) for name in (("float16", "bfloat16", dtype) if dtype == "float32" else (dtype,)))

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Dense, ...]:
        """The type of the model."""
        del columns
        return (Dense(dtype=dtype),)


@dataclass(frozen=True)
class Chosen:
    """A contract of which plans may choose some formats alone: those a user asked for.

    Args:
        whole: what the engine reads.
        formats: asked for; scales without a type of their own get that of the model.
    """

    whole: Contract
    formats: tuple[Format, ...]

    @property
    def kinds(self) -> tuple[type[Format], ...]:
        """Classes of these formats."""
        return tuple(dict.fromkeys(type(format) for format in self.formats))

    def refuses(self, engine: str, format: Format, shape: tuple[int, int], dtypes: frozenset[str]) -> str | None:
        """As the engine does."""
        return self.whole.refuses(engine, format, shape, dtypes)

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Format, ...]:
        """Those that fit all of the given input sizes."""
        typed = dict.fromkeys(_with_scales_in(format, dtype) for format in self.formats)
        dtypes = frozenset({dtype})
        return tuple(
            f for f in typed if not any(self.whole.refuses("", f, (LARGE, count), dtypes) for count in columns)
        )

    def holding(self, columns: int, dtype: str, run: int) -> tuple[Format, ...]:
        """As the engine does."""
        return self.whole.holding(columns, dtype, run)


def grids(columns: Sequence[int], dtype: str, bits: Sequence[int] = BITS) -> tuple[Grid, ...]:
    """Grids that divide all of the given input sizes, as coarse as their width allows.

    Scales cost half a bit a weight in groups of 32 and an eighth in groups of 128. From 6 bits on another bit is
    cheaper than small groups; at 8 bits one scale a row is enough. Groups of 96 and 192 are for widths that 128 does
    not divide.
    """
    found = []
    for width in bits:
        sizes: list[int | None] = [g for g in GROUPS if not any(count % g for count in columns)]
        if all(count % 128 == 0 for count in columns):
            sizes = [g for g in sizes if g not in (96, 192)]
        if width >= 6 or not sizes:
            sizes = [*sizes[-1:], None]
        for size in sizes:
            if width == 8 and size is not None and None in sizes:
                continue
            for symmetric in (True, False) if width < 6 else (True,):
                found.append(Grid(bits=width, group_size=size, symmetric=symmetric, scale_dtype=dtype))
    return tuple(found)


def in_groups(columns: Sequence[int], dtype: str, sizes: Collection[int]) -> tuple[Grid, ...]:
    """Grids without whole rows: of the usual groups, those that an engine reads; from 6 bits on the largest alone."""
    fitting = [g for g in GROUPS if g in sizes and not any(count % g for count in columns)]
    return tuple(
        Grid(bits=width, group_size=size, symmetric=symmetric, scale_dtype=dtype)
        for width in BITS
        for size in (fitting if width < 6 else fitting[-1:])
        for symmetric in ((True, False) if width < 6 else (True,))
    )


def legacy(*types: str) -> tuple[Blocks, ...]:
    """Types with blocks of 32."""
    return tuple(Legacy.of(type) for type in types)


def k_types(*types: str) -> tuple[Blocks, ...]:
    """Types with blocks of 256."""
    return tuple(KQuant.of(type) for type in types)


def _in(loaded: Format, dtype: str) -> Format:
    """The format with scales in a type of 16 or 32 bits, where they are in one."""
    same = getattr(loaded, "scale_dtype", "") in DTYPES
    return replace(loaded, scale_dtype=dtype) if same else loaded  # type: ignore[type-var]


def _with_scales(loaded: Format, format: Format) -> Format:
    scales = getattr(format, "scale_dtype", "")
    return _in(loaded, scales) if type(loaded) is type(format) and scales in DTYPES else loaded


def _with_scales_in(format: Format, dtype: str) -> Format:
    plain = getattr(format, "scale_dtype", "") in DTYPES
    return replace(format, scale_dtype=dtype) if plain else format  # type: ignore[type-var]


def _listed(numbers: frozenset[int]) -> str:
    *most, last = map(str, sorted(numbers))
    return f"{', '.join(most)} or {last}" if most else last
