"""A whole model in memory that is as small as its files: linear layers run on the codes they are stored as.

The model's own code runs, as transformers has it; only linear layers and tables are exchanged for ones that read codes
(`compressed.py`, `numerics/products.py`). In float32 they compute what the dense model computes, up to the order of
sums; in bfloat16 they round as a dense bfloat16 model does, and scales besides. Nothing here is used to certify: claims
are about float32 products with the exact stored weights (decision 0015).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.formats import Part
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.network import Network, Site
from pennyweight.network.running.compressed import CompressedLinear, CompressedTable, Decoded
from pennyweight.network.running.rounding import install, roundings_of
from pennyweight.network.running.stream import fast_forward, place
from pennyweight.numerics.memory import release
from pennyweight.numerics.products import Weight, held

DTYPES = ("bfloat16", "float16", "float32")
PLAIN = (*DTYPES, "float64")  # as a tensor is stored that holds no codes
KERNELS = {"FourBits": "four-bit codes", "EightBits": "eight-bit codes"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of the weight of a site.

    Args:
        site: its name; of a tied weight, the first.
        stored: format in the file.
        held: how it lies in memory.
        bytes: there.
        reason: why it is held like this where no kernel reads it.
    """

    site: str
    stored: str
    held: str
    bytes: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Runnable:
    """A model to call as transformers' own.

    Args:
        model: its module.
        dtype: of its arithmetic.
        ledger: a row for every weight of a site.
    """

    model: nn.Module
    dtype: torch.dtype
    ledger: tuple[Row, ...]


def runnable(
    network: Network, dtype: torch.dtype = torch.bfloat16, *, dense: bool = False,
    on_tensor: Callable[[int], None] | None = None,
) -> Runnable:  # fmt: skip
    """Read a network into memory, weights as codes where they are stored as such; one tensor is read at a time.

    Args:
        network: what `load` returns, of a directory or a GGUF file.
        dtype: of activations, and of what is stored dense. Kernels are quick in bfloat16 alone.
        dense: decode everything, as an ordinary loader would.
        on_tensor: told the stored bytes of every tensor that is in memory.

    Raises:
        InvalidModel: a program without weights of its own, such as an ONNX file.
        InvalidWeights: a dense tensor is not finite.
    """
    if not network.blocks:
        raise InvalidModel(
            "it has no weights that can be read", expected="a model directory or a .gguf file",
            mend="run it in its own engine, or use the model that it was exported from", site=str(network.source.path),
        )  # fmt: skip
    model, rows = skeleton(network.source), []
    for stored, sites in _by_tensor(network).items():
        weight, reason = (None, "all weights were asked for dense") if dense else _weight(network, model, sites, dtype)
        info = network.source.tensors[stored]
        if weight is not None:
            for site in sites:
                model.set_submodule(site.name, _layer(model.get_submodule(site.name), weight, dtype))
            if on_tensor:
                on_tensor(info.bytes)
            size, how = weight.bytes, KERNELS.get(type(weight).__name__, "decoded at every call")
        else:
            size, how = site_bytes(sites[0], dtype), f"dense {str(dtype).removeprefix('torch.')}"
        plain = info.dtype in PLAIN and not dense
        rows.append(Row(site=sites[0].name, stored=info.dtype, held=how, bytes=size, reason="" if plain else reason))
        release()

    def read(name: str) -> Tensor:
        if on_tensor:
            on_tensor(network.source.tensors[name].bytes)
        return network.source.read(name)

    place(model, network, [name for name, _ in model.named_parameters(remove_duplicate=False)], dtype, read)
    for module in model.modules():
        if type(module) is nn.Linear and dtype == torch.float32:
            module.forward = fast_forward(module)  # type: ignore[method-assign, assignment]
    install(model, roundings_of(network.source))
    return Runnable(model, dtype, tuple(rows))


def site_bytes(site: Site, dtype: torch.dtype) -> int:
    """Of its weight, dense."""
    return site.elements * dtype.itemsize


def _by_tensor(network: Network) -> dict[str, list[Site]]:
    found: dict[str, list[Site]] = defaultdict(list)
    for site in network.sites:
        found[network.stored_name(site.parameter)].append(site)
    return found


def _weight(network: Network, model: nn.Module, sites: list[Site], dtype: torch.dtype) -> tuple[Weight | None, str]:
    """What all sites of one stored tensor are to read; None and why where it must be dense."""
    stored = network.stored_name(sites[0].parameter)
    if network.source.tensors[stored].dtype in PLAIN:
        return None, ""
    for site in sites:
        module = model.get_submodule(site.name)
        if type(module) not in (nn.Linear, nn.Embedding) or site.layout != "out in" or site.tensor:
            return None, f"{type(module).__name__} computes something of its own with its weight"
    read: Callable[[str], Part] | None = getattr(network.source, "read_part", None)
    if read is None:
        return None, "codes of these files are read as numbers only"
    try:
        part = read(stored)
    except (InvalidModel, InvalidFormat) as error:
        return None, error.happened
    lattice = part.format.lattice(part.tensors, sites[0].shape)
    if lattice is None:
        return Decoded(part, sites[0].shape), "its numbers are not evenly spaced, or rows share scales"
    weight = held(lattice.codes, lattice.step, lattice.offset, levels=lattice.levels, dtype=dtype)
    if weight is None:
        runs = sites[0].shape[1] // lattice.step.shape[1]
        return Decoded(part, sites[0].shape), f"no kernel takes groups of {runs}"
    return weight, ""


def _layer(module: nn.Module, weight: Weight, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return CompressedTable(weight, dtype)
    assert isinstance(module, nn.Linear)
    return CompressedLinear(weight, dtype, module.bias)
