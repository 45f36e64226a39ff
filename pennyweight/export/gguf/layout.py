"""What a GGUF file will hold, decided before a byte is written: tensors, their types, their exact sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.export.gguf.architectures import DROPPED, ROPE_FACTORS, Architecture, architecture_of, rotary_factors
from pennyweight.export.gguf.stream import PLAIN, TYPES, Stored, padded
from pennyweight.export.uncompressed import check_equal, dense_dtype, tied_to
from pennyweight.formats import Dense, Format
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.gguf.blocks import Blocks
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.gguf import GGUFSource
from pennyweight.network.sources.source import TensorInfo

LONGEST_NAME = 63  # bytes; llama.cpp ends names with a zero


@dataclass(frozen=True)
class Item:
    """One tensor of the source, and what it becomes.

    Args:
        info: of the source.
        action: as in the accounting.
        reason: from what to what, or why.
        stored: in the file; None for a tensor that is dropped.
        format: block type of a site that was compressed.
        site: that site.
        dtype: that a dense tensor is rounded to; empty for one whose bytes are copied as they are.
        heads: whose rows are put into the order in which llama.cpp rotates them; 0 for all others.
        plus: added to every element.
    """

    info: TensorInfo
    action: str
    reason: str
    stored: Stored | None = None
    format: Blocks | None = None
    site: Site | None = None
    dtype: str = ""
    heads: int = 0
    plus: float = 0.0

    @property
    def bytes(self) -> int:
        """In the file, filled up."""
        return 0 if self.stored is None else self.stored.padded


def stored_bytes(shape: tuple[int, int], format: Format, dtype: str) -> int:
    """Bytes a site takes in the file, filled up.

    Raises:
        InvalidFormat: the format is no block type, or does not fit the shape.
    """
    del dtype
    if not isinstance(format, Dense | Blocks):
        raise InvalidFormat(f"{format.label()} in GGUF files", expected="a block type, such as q4_0 or q4_k")
    return padded(format.stored_bits(shape) // 8)


def kept_bytes(network: Network, site: Site, dtype: str) -> int:
    """Bytes a site takes that stays as it is: as it lies in a GGUF file, else dense."""
    info = network.source.tensors[network.stored_name(site.parameter)]
    if _copied(network, info):
        return padded(info.bytes)
    return padded(Dense(dtype=dense_dtype(info, dtype)).stored_bits(site.shape) // 8)


def kept_as(network: Network, site: Site, dtype: str) -> str:
    """What such a site is stored as."""
    info = network.source.tensors[network.stored_name(site.parameter)]
    return f"{info.dtype}, as it was" if _copied(network, info) else f"dense {dense_dtype(info, dtype)}"


def items_of(network: Network, formats: Mapping[str, Format], dtype: str) -> list[Item]:
    """Every tensor of the source: embedding, blocks, norm and head, then what else there is.

    Raises:
        InvalidModel: a family, an option or a tensor that llama.cpp does not know.
        InvalidFormat: a format that is no block type, or does not fit its site.
    """
    Dense(dtype=dtype)
    source = network.source
    architecture, config = architecture_of(source)
    sites = {site.parameter: site for site in network.sites}
    if unknown := sorted(set(formats) - network.by_name.keys()):
        raise InvalidFormat("there is no such site", expected=f"one of {len(sites)} sites", site=unknown[0])
    first = [n for n in network.outer if n in sites and sites[n].role == "embedding"]
    inside = [name for block in network.blocks for name in block.parameters]
    order = dict.fromkeys(network.stored_name(name) for name in [*first, *inside, *network.outer])
    items = []
    for name in [*(n for n in order if n in source.tensors), *(n for n in source.tensors if n not in order)]:
        shared = next((names for names in network.tied if name in names), (name,))
        site = next((sites[other] for other in shared if other in sites), None)
        format = None if site is None else formats.get(site.name)
        items.append(_item(source.tensors[name], site, format, network, architecture, config, dtype))
    if architecture.always_tied and any(item.stored and item.stored.name == "output.weight" for item in items):
        raise InvalidModel(
            "its head is not its embedding table", expected="one tensor for both, as llama.cpp takes for granted",
            mend="choose another engine", site=str(source.path),
        )  # fmt: skip
    return items


def added(network: Network) -> list[tuple[Stored, Any]]:
    """Tensors that follow from the configuration, with their values."""
    _, config = architecture_of(network.source)
    factors = rotary_factors(config, network.source)
    return [] if factors is None else [(Stored.of(ROPE_FACTORS, "F32", tuple(factors.shape)), factors)]


def _item(
    info: TensorInfo, site: Site | None, format: Format | None, network: Network, architecture: Architecture,
    config: Any, dtype: str,
) -> Item:  # fmt: skip
    if info.name.endswith(DROPPED):
        return Item(info, "dropped", "rotary frequencies, which follow from the configuration")
    if (kept := tied_to(info.name, network)) is not None:
        check_equal(info.name, kept, network)
        return Item(info, "dropped", f"the same tensor as {kept}")
    name = architecture.name_of(_as_embedding(info.name, network))
    if name is None or len(name.encode()) > LONGEST_NAME or len(info.shape) > 2:
        raise InvalidModel(
            f"llama.cpp knows no such tensor in models of type {architecture.name}",
            expected="the tensors of a plain language model of this family", mend="choose another engine",
            site=info.name,
        )  # fmt: skip
    heads = architecture.heads_of(info.name, config) or 0
    ordered = "; rows in the order in which llama.cpp rotates them" if heads else ""
    if format is not None:
        if not isinstance(format, Blocks):
            raise InvalidFormat(
                f"{format.label()} in GGUF files", expected="a block type, such as q4_0 or q4_k",
                mend="choose another step, or another engine", site=info.name,
            )  # fmt: skip
        format.fields(info.shape)
        stored = Stored.of(name, format.type.upper(), info.shape)
        return Item(info, "transformed", format.label() + ordered, stored, format, site, heads=heads)
    if isinstance(network.source, GGUFSource) and _copied(network, info):
        stored = Stored(name, network.source.type_number(info.name), info.shape, info.bytes)
        return Item(info, "kept", f"{info.dtype}, byte for byte", stored)
    # Norms and biases are added to and multiplied with float32, and llama.cpp wants them so.
    wide = len(info.shape) == 1
    target = "float32" if wide else dense_dtype(info, dtype)
    if target not in PLAIN:
        raise InvalidModel(
            f"is stored as {info.dtype}", expected="floating-point numbers", mend="choose another engine",
            site=info.name,
        )  # fmt: skip
    stored = Stored.of(name, PLAIN[target], info.shape)
    if architecture.adds_one(info.name):
        reason = "one added, as llama.cpp multiplies with the sum"
        return Item(info, "transformed", reason, stored, dtype=target, plus=1.0)
    action = "kept" if target == info.dtype else "cast"
    reason = ordered.removeprefix("; ") if action == "kept" else f"{info.dtype} to {target}{ordered}"
    return Item(info, action, reason, stored, dtype=target, heads=heads)


def _as_embedding(name: str, network: Network) -> str:
    """The embedding's name of a tensor that embedding and head share; its own of any other."""
    shared = next((names for names in network.tied if name in names), ())
    tables = [site.parameter for site in network.sites if site.role == "embedding"]
    return next((table for table in tables if table in shared), name)


def _copied(network: Network, info: TensorInfo) -> bool:
    """Whether a tensor is copied byte for byte: codes that lie in a GGUF file lose nothing by staying what they are."""
    return isinstance(network.source, GGUFSource) and info.dtype not in DTYPES and info.dtype.upper() in TYPES
