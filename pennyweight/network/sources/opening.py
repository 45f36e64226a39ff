"""Find a model by path or name, and open it whatever it is stored as."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from pennyweight.errors import InvalidModel, MissingExtra, MissingFile
from pennyweight.network.sources.gguf import GGUFSource
from pennyweight.network.sources.source import AUXILIARY_SUFFIXES, SafetensorsSource, Source


def find_model(path: str | os.PathLike[str], *, allow_network: bool = False) -> Path:
    """Where a model lies; with `allow_network`, a name on the Hugging Face hub is downloaded first.

    Raises:
        MissingFile: nothing is there.
        MissingExtra: the hub's package is not installed.
    """
    place = Path(path)
    return place if place.exists() else _download(os.fspath(path), allow_network)


def open_source(
    path: str | os.PathLike[str], *, allow_network: bool = False, quantized: Collection[str] = ()
) -> Source:
    """Open a model directory or a .gguf file, or a directory that holds one; headers only.

    Args:
        path: directory, .gguf file, or with `allow_network` a name on the Hugging Face hub.
        allow_network: download what is not here. Without it nothing is ever fetched.
        quantized: values of `quantization_config.quant_method` the caller knows how to read from the raw tensors.

    Raises:
        MissingFile: nothing is there.
        InvalidModel: something is there that is not a model we can read.
        CorruptFile: a file's bytes are not what its header says.
        MissingExtra: a package is needed for this kind of file.
    """
    place = find_model(path, allow_network=allow_network)
    if place.is_file():
        if place.suffix.lower() != ".gguf":
            raise InvalidModel(
                f"cannot read a model from a {place.suffix or 'file without suffix'} file",
                expected="a model directory, or a .gguf file",
                mend=f"pass the directory that holds it and config.json: {place.parent}",
                site=str(place),
            )
        return GGUFSource(place)
    found = [] if (place / "config.json").exists() else sorted(place.glob("*.gguf"))
    if len(found) == 1:
        return GGUFSource(found[0])
    if found:
        raise InvalidModel(
            f"a directory with {len(found)} GGUF files and no config.json",
            expected="a model directory, or one .gguf file",
            mend=f"pass the file itself: {found[0]}",
            site=str(place),
        )
    source = SafetensorsSource(place)
    quantization = source.config.get("quantization_config")
    if quantization is not None:
        method = str(quantization.get("quant_method")) if isinstance(quantization, dict) else "unknown"
        if method not in quantized:
            raise InvalidModel(
                f"its weights are already quantized by {method}",
                expected="plain float weights" + (f", or one of {', '.join(sorted(quantized))}" if quantized else ""),
                mend="start from the model this one was made of: its name usually lacks the ending (-AWQ, -GPTQ, -FP8)",
                site=str(place),
            )
    return source


def _download(name: str, allow_network: bool) -> Path:
    """Fetch a model from the hub, when that was allowed, and return where the copy lies."""
    is_hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None
    if not (allow_network and is_hub_name):
        raise MissingFile(
            "there is no such file or directory",
            expected="a model directory with config.json and *.safetensors, or a .gguf file",
            mend="check the path; if this is a name on the Hugging Face hub, allow the download with --allow-network"
            if is_hub_name
            else "check the path",
            site=name,
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("huggingface_hub is not installed", mend="pip install huggingface_hub", site=name) from error
    wanted = ["*.safetensors", *(f"*{suffix}" for suffix in sorted(AUXILIARY_SUFFIXES)), "LICENSE*", "NOTICE*"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (OSError, ValueError, RuntimeError) as error:  # no connection, no such model, gated, disk full
        raise MissingFile(
            f"could not be downloaded: {' '.join(str(error).split())[:200]}",
            expected="the name of a public model, or one you have access to",
            mend="check the name and the connection, or download the model and pass its directory",
            site=name,
        ) from error
