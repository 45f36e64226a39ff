"""What both kinds of programs have in common, onnxruntime's and OpenVINO's: weights in a file of their own beside them.

Every tensor begins at a multiple of 64 bytes. Before the first stand 128 bytes that say which tensors follow, so that
a file that is there is known to be of this very plan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.export.safetensors_stream import WholeFile, bytes_of, is_whole
from pennyweight.export.uncompressed import check_equal, dense_bytes, dense_dtype, tied_to
from pennyweight.export.writing import beside_bytes
from pennyweight.formats import Dense, Format, Grid
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import TensorInfo

ALIGNMENT, HEADER = 64, 128
FOR_CONFIG = 16_384  # bytes of config.json, at most


class Stored(Protocol):
    """One tensor of the data file."""

    @property
    def name(self) -> str:
        """In the program."""
        ...

    @property
    def bytes(self) -> int:
        """Not filled up."""
        ...


S = TypeVar("S", bound=Stored)


@dataclass(frozen=True)
class Item(Generic[S]):
    """One tensor of the source, and what it becomes.

    Args:
        info: of the source.
        action: as in the accounting.
        reason: from what to what, or why.
        stored: the tensor, or codes, scales and zero points; none for one that is dropped.
        grid: of a site that is compressed.
        site: that site.
        dtype: of a tensor that is not.
    """

    info: TensorInfo
    action: str
    reason: str
    stored: tuple[S, ...] = ()
    grid: Grid | None = None
    site: Site | None = None
    dtype: str = ""

    @property
    def bytes(self) -> int:
        """In the data file, filled up."""
        return sum(padded(one.bytes) for one in self.stored)


@dataclass(frozen=True, kw_only=True)
class Layout(Generic[S]):
    """How one kind of programs stores tensors.

    Args:
        packed: what is stored of a weight `[out, in]` in a grid; refuses what does not fit.
        plain: what is stored of a tensor in a float type.
        dtypes: those types.
    """

    packed: Callable[[str, tuple[int, int], Format], tuple[S, ...]]
    plain: Callable[[str, str, tuple[int, ...]], S]
    dtypes: Collection[str]

    def stored_bytes(self, shape: tuple[int, int], format: Format) -> int:
        """Bytes a site takes in the data file, filled up.

        Raises:
            InvalidFormat: the format does not fit the shape, or these files.
        """
        if isinstance(format, Dense):
            return padded(format.stored_bits(shape) // 8)
        return sum(padded(one.bytes) for one in self.packed("weight", shape, format))

    def items_of(
        self, network: Network, formats: Mapping[str, Format], dtype: str, read: Iterable[str]
    ) -> list[Item[S]]:
        """Every tensor of the source, in the order of computing.

        Args:
            network: what is written.
            formats: grid by name of site.
            dtype: of everything else that is wider.
            read: stored names of what the program reads, in its order.

        Raises:
            InvalidFormat: no such site, or a format that does not fit.
            InvalidModel: two tensors differ that config.json says are one.
        """
        Dense(dtype=dtype)
        tensors, chosen = network.source.tensors, chosen_of(network, formats)
        order = [name for name in dict.fromkeys(read) if name in tensors]
        return [self._item(tensors[n], network, chosen, dtype, set(order)) for n in dict.fromkeys([*order, *tensors])]

    def _item(
        self, info: TensorInfo, network: Network, chosen: Mapping[str, tuple[Site, Format]], dtype: str, read: set[str]
    ) -> Item[S]:
        name = info.name
        if (kept := tied_to(name, network)) is not None:
            check_equal(name, kept, network)
            return Item(info, "dropped", f"the same tensor as {kept}")
        if name not in read:
            return Item(info, "dropped", "nothing of the program reads it")
        if name in chosen:
            site, format = chosen[name]
            stored = self.packed(name, site.shape, format)
            assert isinstance(format, Grid)
            return Item(info, "transformed", format.label(), stored, format, site)
        wanted = dense_dtype(info, dtype)
        if wanted not in self.dtypes:
            raise InvalidModel(
                f"is stored as {wanted}", expected="floating-point numbers", mend="choose another engine", site=name
            )
        action, reason = ("kept", "") if wanted == info.dtype else ("cast", f"{info.dtype} to {wanted}")
        return Item(info, action, reason, (self.plain(name, wanted, info.shape),), dtype=wanted)


class ProgramFiles:
    """What `Files` asks and both kinds answer alike."""

    one_file = False

    def kept_bytes(self, network: Network, site: Site, dtype: str) -> int:
        """Its elements in the model's type, or its own where that is no wider."""
        return padded(dense_bytes(network.source.tensors[network.stored_name(site.parameter)], dtype))

    def kept_as(self, network: Network, site: Site, dtype: str) -> str:
        """That type."""
        return f"dense {dense_dtype(network.source.tensors[network.stored_name(site.parameter)], dtype)}"

    def fixed_bytes(self, network: Network, decided: Collection[str], dtype: str) -> int:
        """All other tensors that the network computes with, filled up."""
        names = (name for block in network.blocks for name in block.parameters)
        read = {network.stored_name(name) for name in (*names, *network.outer)} - set(decided)
        infos = [network.source.tensors[name] for name in read if tied_to(name, network) is None]
        return sum(padded(dense_bytes(info, dtype)) for info in infos)

    def beside(self, network: Network, dtype: str) -> int:
        """The program, which is bounded by its first layers, configuration, and what is copied; at most."""
        del dtype
        return self.around(network) + FOR_CONFIG + beside_bytes(network)

    def around(self, network: Network) -> int:
        """Bytes of the program, and of what lies before the weights in their file; at most."""
        raise NotImplementedError


def padded(count: int) -> int:
    """The next multiple of the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def chosen_of(network: Network, formats: Mapping[str, Format]) -> dict[str, tuple[Site, Format]]:
    """Site and format by the name of the stored tensor, of those that do not stay dense.

    Raises:
        InvalidFormat: no such site, or two formats for one tensor.
    """
    sites, chosen = network.by_name, dict[str, tuple[Site, Format]]()
    for name, format in formats.items():
        if name not in sites:
            raise InvalidFormat("there is no such site", expected=f"one of {len(sites)} sites", site=name)
        stored = network.stored_name(sites[name].parameter)
        before = chosen.setdefault(stored, (sites[name], format))[1]
        if before != format:
            raise InvalidFormat(
                f"{format.label()}, and {before.label()} for the same tensor", expected="one format for one tensor",
                mend="give both sites one step", site=name,
            )  # fmt: skip
    return {stored: pair for stored, pair in chosen.items() if not isinstance(pair[1], Dense)}


def parameters_of(network: Network) -> set[str]:
    """Every name that a weight of the network goes by."""
    return set(network.source.tensors) | {name for names in network.tied for name in names}


def write_data(
    path: Path, header: bytes, offsets: Mapping[str, int], size: int, items: Sequence[Item[S]],
    tensors: Callable[[Item[S]], Sequence[Tensor]], on_tensor: Callable[[str, int], None] | None,
) -> None:  # fmt: skip
    """Write the data file, one tensor in memory at a time; one that is there is not made again.

    Args:
        path: of the file, which appears when it is whole.
        header: its first bytes, which say what follows.
        offsets: where in it each stored tensor begins.
        size: of all of it.
        items: in the order of computing.
        tensors: what is stored of an item, in the order of its `stored`.
        on_tensor: called with the name of each tensor of the source, and its bytes in the output, when it is done.
    """
    if is_whole(path, header, size):
        for item in items if on_tensor else ():
            on_tensor(item.info.name, item.bytes)  # type: ignore[misc]
        return
    with WholeFile(path, header, offsets, size) as writer:
        for item in items:
            for one, tensor in zip(item.stored, tensors(item) if item.stored else (), strict=True):
                writer.put_bytes(one.name, bytes_of(tensor))
            if on_tensor:
                on_tensor(item.info.name, item.bytes)
