"""Open a model, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from pennyweight.export import CompressedTensorsSource, is_compressed_tensors
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.network.network import Network
from pennyweight.network.source import check_finite, open_source
from pennyweight.network.trace import load_network


def check_weights(network: Network, progress: Progress = QUIET) -> None:
    """Read every tensor once and refuse NaN and infinity, before any work rests on them.

    Raises:
        InvalidWeights: names the tensor.
    """
    with progress.stage("checking weights", network.source.stored_bytes) as advance:
        for name, info in network.source.tensors.items():
            check_finite(name, network.source.read(name))
            advance(info.bytes)


def load(model: str | Path, *, allow_network: bool = False) -> Network:
    """Sites and edges of a model; the weights stay on disk.

    Args:
        model: a Hugging Face directory (safetensors, sharded or not; compressed-tensors too), a GGUF file, or a hub id
            when the network may be used.
        allow_network: whether a hub id may be downloaded.

    Raises:
        MissingFile: there is nothing by that name, or a shard is missing.
        CorruptFile: a file is damaged.
        InvalidModel: it is not a model we can read.
    """
    path = Path(model)
    if path.is_dir() and is_compressed_tensors(path):
        return load_network(CompressedTensorsSource(path))
    return load_network(open_source(model, allow_network=allow_network))
