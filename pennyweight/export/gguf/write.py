"""Write `model.gguf`: what llama.cpp loads, in one file with its tokenizer.

Source: the GGUF format, version 3 (`stream.py`), and llama.cpp's converter for what the keys and tensors of a family
are (`architectures.py`, `tokenizer.py`). Block types are packed by the formats themselves, which hold their bytes to
llama.cpp's (`formats/gguf/`). Norms and biases are float32, all else that is not compressed is in the model's type.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pennyweight.errors import MissingExtra
from pennyweight.export.accounting import Accounting, Row
from pennyweight.export.gguf.architectures import architecture_of, hyperparameters
from pennyweight.export.gguf.layout import Item, added, items_of
from pennyweight.export.gguf.stream import GGUFWriter, Stored, layout, string, u32
from pennyweight.export.gguf.tokenizer import gguf_of, tokenizer_values
from pennyweight.export.safetensors_stream import bytes_of, is_whole
from pennyweight.export.writing import one_part, refuse_foreign, rounded, rows_of
from pennyweight.formats import Compressed, Format
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.gguf import GGUFSource

NAME = "model.gguf"
QUANTIZATION_VERSION = 2  # of the block types
# What a file is said to be mostly made of: for people, engines go by each tensor's own type.
FILE_TYPES = {0: 0, 1: 1, 30: 32, 2: 2, 3: 3, 6: 8, 7: 9, 8: 7, 10: 10, 11: 12, 12: 15, 13: 17, 14: 18, 20: 25, 23: 30,
              34: 36, 35: 37}  # fmt: skip


def check(network: Network, formats: Mapping[str, Format], dtype: str) -> None:
    """Refuse what cannot be written, before any work.

    Raises:
        InvalidModel: a family, option, tensor or tokenizer that llama.cpp does not know.
        InvalidFormat: a format that a GGUF file does not hold.
        MissingExtra: the package that written files are read back with is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra(
            "the gguf package is not installed, by which what is written is read back",
            mend="pip install 'pennyweight[gguf]'", site="--for",
        )  # fmt: skip
    _values(network, items_of(network, formats, dtype))


def header_bytes(network: Network, dtype: str) -> int:
    """Bytes before the first tensor; the same for every plan."""
    items = items_of(network, {}, dtype)
    return len(layout(_values(network, items), _tensors(network, items))[0])


def write(
    network: Network,
    formats: Mapping[str, Format],
    compressed: Callable[[Site], Compressed],
    out: Path,
    *,
    dtype: str,
    on_tensor: Callable[[str, int], None] | None = None,
) -> Accounting:
    """Write the file; one tensor in memory at a time. It appears when it is whole; one that is there is not made again.

    Args:
        network: what is written; its source gives the tensors that are not compressed.
        formats: block type by name of site. All other matrices wider than `dtype` are rounded to it.
        compressed: called once for each of these sites, in the order of the file.
        out: directory, made if need be.
        dtype: of the model: float16, bfloat16 or float32.
        on_tensor: called with the name of each tensor of the source, and its bytes in the output, when it is done.

    Raises:
        InvalidFormat: a format does not fit its site, or this file format; raised before anything is written.
        InvalidModel: llama.cpp does not know this network or its tokenizer; raised before anything is written.
        InvalidOutput: the directory holds other weights, or cannot be written to.
        DiskFull: no space left; no half-written file is left.
    """
    items = items_of(network, formats, dtype)
    values, tensors = _values(network, items), _tensors(network, items)
    refuse_foreign(out, ["*.gguf"], {NAME})
    path, extra = out / NAME, added(network)
    header, _, size = layout(values, tensors)
    if not is_whole(path, header, size):
        out.mkdir(parents=True, exist_ok=True)
        with GGUFWriter(path, values, tensors) as writer:
            for item in items:
                if item.stored is not None:
                    writer.put(item.stored.name, _data(item, network, compressed))
                if on_tensor:
                    on_tensor(item.info.name, item.bytes)
            for stored, tensor in extra:
                writer.put(stored.name, bytes_of(tensor))
    elif on_tensor:
        for item in items:
            on_tensor(item.info.name, item.bytes)
    new = tuple(
        Row(name=stored.name, action="transformed", reason="made of the configuration",
            bytes_before=0, bytes_after=stored.padded)
        for stored, _ in extra
    )  # fmt: skip
    return Accounting(
        rows=rows_of(items),
        expected=tuple(network.source.tensors),
        written=path.stat().st_size - len(header),
        added=new,
    )


def _tensors(network: Network, items: list[Item]) -> list[Stored]:
    return [*(item.stored for item in items if item.stored is not None), *(stored for stored, _ in added(network))]


def _values(network: Network, items: list[Item]) -> dict[str, bytes]:
    source = network.source
    architecture, config = architecture_of(source)
    table = next(item for item in items if item.stored is not None and item.stored.name == "token_embd.weight")
    weights = Counter[int]()
    for item in items:
        if item.stored is not None and len(item.stored.shape) > 1:
            weights[item.stored.type] += item.stored.shape[0] * item.stored.shape[1]
    values = {"general.architecture": string(architecture.name)}
    if (file := gguf_of(source)) is not None:
        kept = {key: value for key, value in file.key_values().items() if not key.startswith("split.")}
        values |= {key: value for key, value in kept.items() if key != "general.alignment"}
    return {
        **values,
        "general.architecture": string(architecture.name),
        "general.quantized_by": string("pennyweight"),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "general.file_type": u32(FILE_TYPES.get(weights.most_common(1)[0][0], 1)),
        **hyperparameters(architecture, config, source),
        **tokenizer_values(source, table.info.shape[0]),
    }


def _data(item: Item, network: Network, compressed: Callable[[Site], Compressed]) -> memoryview:
    name, source = item.info.name, network.source
    if item.format is not None:
        assert item.site is not None
        tensors = one_part(name, item.format, compressed(item.site)).tensors
        rows = {key: _pairs_from_halves(tensor, item.heads) for key, tensor in tensors.items()}
        return bytes_of(item.format.pack(rows, item.info.shape))
    if not item.dtype:
        assert isinstance(source, GGUFSource)
        return bytes_of(source.raw(name))
    tensor = source.read(name)
    if item.plus:
        tensor = tensor.float() + item.plus
    return bytes_of(_pairs_from_halves(rounded(name, tensor, item.dtype), item.heads))


def _pairs_from_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows i and i + size/2 of each head become neighbours, 2i and 2i + 1: llama.cpp rotates neighbours."""
    if not heads:
        return tensor
    rows = torch.arange(len(tensor)).reshape(heads, 2, -1).transpose(1, 2).flatten()
    return tensor[rows]
