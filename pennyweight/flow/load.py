"""Open a model, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

import torch

from pennyweight.errors import InvalidMeasurement, InvalidWeights
from pennyweight.export import FILES
from pennyweight.export.gptq.awq import AWQSource, is_awq
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network
from pennyweight.network.running.onnx import open_onnx
from pennyweight.network.sources.opening import find_model, open_source
from pennyweight.network.sources.source import check_finite


def check_weights(network: Network, dtype: str, progress: Progress = QUIET) -> None:
    """Read every tensor once and refuse NaN, infinity and what `dtype` cannot hold, before any work rests on them.

    Raises:
        InvalidWeights: names the tensor.
    """
    most = torch.finfo(getattr(torch, dtype)).max
    with progress.stage("checking weights", network.source.stored_bytes) as advance:
        for name, info in network.source.tensors.items():
            tensor = network.source.read(name)
            check_finite(name, tensor)
            if tensor.is_floating_point() and tensor.numel() and max(map(abs, map(float, tensor.aminmax()))) > most:
                raise InvalidWeights(
                    f"a value is beyond {most:g}, the largest of {dtype}", expected=f"weights that {dtype} can hold",
                    mend="--dtype bfloat16, if the engine takes it", site=name,
                )  # fmt: skip
            advance(info.bytes)


def load(model: str | Path, *, allow_network: bool = False) -> Network:
    """Sites and edges of a model; the weights stay on disk.

    Args:
        model: a Hugging Face directory (safetensors, sharded or not; compressed-tensors, GPTQ and AWQ too), a GGUF
            file, an ONNX file (it has no sites: it can be scored and not compressed), or a hub id when the network may
            be used.
        allow_network: whether a hub id may be downloaded.

    Raises:
        MissingFile: there is nothing by that name, or a shard is missing.
        CorruptFile: a file is damaged.
        InvalidModel: it is not a model we can read.
        MissingExtra: a package is needed for this kind of file.
    """
    path = find_model(model, allow_network=allow_network)
    if path.is_file() and path.suffix.lower() == ".onnx":
        return open_onnx(path)
    if path.is_dir() and is_awq(path):
        return load_network(AWQSource(path))
    for files in FILES.values():
        if (source := files.opens(path)) is not None:
            return load_network(source)
    return load_network(open_source(path))


def check_pair(before: Network, after: Network) -> None:
    """Refuse two models that do not read the same tokens.

    Raises:
        InvalidMeasurement: their vocabularies differ.
    """
    rows = [[site.shape[0] for site in network.sites if site.role == "embedding"] for network in (before, after)]
    if rows[0] and rows[1] and rows[0] != rows[1]:
        raise InvalidMeasurement(
            f"vocabularies of {rows[0][0]} and {rows[1][0]} tokens", expected="two models that read the same tokens",
            mend="compare models of one family", site=str(after.source.path),
        )  # fmt: skip
