"""Run an ONNX language model as its users do, with onnxruntime, so that it can be scored beside the model it came from.

Source: the ONNX specification (`ModelProto`, external data) and the inputs that the exporters of optimum, of
onnxruntime-genai and of torch give a causal language model. An ONNX file is a program and not a set of weights: there
are no sites to compress in it, and its states are its logits. onnxruntime is needed to run it and onnx to find the
files beside it; both are optional and imported when they are first used.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pennyweight.errors import CorruptFile, InvalidModel, MissingExtra, MissingFile
from pennyweight.network.network import Network
from pennyweight.network.sources.source import AUXILIARY_SUFFIXES, NOT_AUXILIARY, TensorInfo, is_there, read_json_object
from pennyweight.numerics.hashing import of_file

LOGIT_TOKENS = 1024  # whose logits are in memory at once: 200 MB for a vocabulary of 49152
TYPES: Mapping[str, Any] = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}  # fmt: skip
CACHE = re.compile(r"past|cache", re.IGNORECASE)  # keys and values of earlier tokens, whatever the exporter calls them
SWITCHES = {"use_cache_branch": False, "num_logits_to_keep": 0, "logits_to_keep": 0}  # 0 keeps the logits of all


class OnnxSource:
    """An .onnx file as a source: what can be said of it without its weights.

    Args:
        path: the file. Its graph is read and the files beside it are looked for at once; nothing is run.

    Raises:
        MissingFile: the file, or one it keeps weights in, is not there.
        MissingExtra: the onnx package is not installed.
        CorruptFile: it is not an ONNX model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFile("there is no such file", expected="an .onnx file", site=str(self.path))
        onnx = _package("onnx", self.path)
        try:
            model = onnx.load(str(self.path), load_external_data=False)
        except Exception as error:  # protobuf raises its own kinds, which differ between versions
            self._corrupt(f"cannot be read as ONNX: {str(error).splitlines()[0] if str(error) else 'no reason given'}")
        if not model.graph.output:
            self._corrupt("the graph has no output")
        self.producer = f"{model.producer_name} {model.producer_version}".strip()
        self.files = (self.path, *self._beside(model))
        beside = self.path.parent / "config.json"
        self.config: Mapping[str, Any] = read_json_object(beside) if beside.is_file() else {}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({})

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over the file and the files it keeps weights in, by what they hold and not by their names."""
        return hashlib.sha256("".join(of_file(file) for file in self.files).encode()).hexdigest()

    @property
    def stored_bytes(self) -> int:
        """Size of these files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def description(self) -> str:
        """Who made it, and in how many files."""
        count = len(self.files)
        made = f" made by {self.producer}" if self.producer else ""
        return f"ONNX{made}, {count} file{'s' if count > 1 else ''}, run by onnxruntime"

    def read(self, name: str) -> Tensor:
        """Refuse: the weights of a program are not read one by one.

        Raises:
            InvalidModel: always.
        """
        raise InvalidModel(
            f"an ONNX file is a program, and {name} cannot be read from it",
            expected="a model directory or a .gguf file, to look at weights",
            mend="use the model that this file was exported from", site=str(self.path),
        )  # fmt: skip

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Tokenizer and the like, as paths."""
        files = [file for file in self.path.parent.iterdir() if file.is_file() and file.name not in NOT_AUXILIARY]
        return {file.name: file for file in sorted(files) if file.suffix.lower() in AUXILIARY_SUFFIXES}

    @cached_property
    def session(self) -> Any:
        """The model in onnxruntime, ready to run on the CPU.

        Raises:
            MissingExtra: onnxruntime is not installed.
            InvalidModel: onnxruntime cannot run it.
        """
        runtime = _package("onnxruntime", self.path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3  # errors alone: warnings about the graph go to stderr from C++
        try:
            return runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen kinds of its own, all of which say why
            raise InvalidModel(
                f"onnxruntime cannot load it: {' '.join(str(error).split())[:300]}",
                expected="a model that onnxruntime runs on the CPU",
                mend="check it with onnx.checker, or upgrade onnxruntime", site=str(self.path),
            ) from error  # fmt: skip

    def _beside(self, model: Any) -> tuple[Path, ...]:
        """Files that tensors of the model lie in, sorted by name."""
        names = {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
        outside = [name for name in names if not isinstance(name, str) or "\0" in name or _leaves(name)]
        if outside:
            self._corrupt(f"it keeps weights in {str(outside[0])[:200]!r}, outside of its directory")
        files = tuple(self.path.parent / name for name in sorted(names))
        for file in files:
            if not is_there(file):
                raise MissingFile(
                    f"its weights are in {file.name[:200]}, which is not there",
                    expected="that file beside the .onnx file",
                    mend="copy or download all files of the model into one directory", site=str(self.path),
                )  # fmt: skip
        return files

    def _corrupt(self, happened: str) -> NoReturn:
        raise CorruptFile(happened, expected="an .onnx file, whole", mend="export or download it again",
                          site=str(self.path))  # fmt: skip


def _leaves(name: str) -> bool:
    return PurePath(name).is_absolute() or ".." in PurePath(name).parts


def open_onnx(path: str | Path) -> Network:
    """An .onnx file as a network without sites: it can be scored and certified, not compressed.

    Raises:
        MissingFile: the file, or one it keeps weights in, is not there.
        MissingExtra: the onnx package is not installed.
        CorruptFile: it is not an ONNX model.
    """
    return Network(source=OnnxSource(path), blocks=(), sites=(), edges={}, tied=(), untouched={}, outer=())


@dataclass(eq=False)
class OnnxRunner:
    """Feeds token ids to an ONNX model and takes its logits.

    Args:
        network: as `open_onnx` returns it.

    Raises:
        MissingExtra: onnxruntime is not installed.
        InvalidModel: the model has an input that is not understood, or no logits for every position.
    """

    network: Network

    def __post_init__(self) -> None:
        source = self.network.source
        if not isinstance(source, OnnxSource):
            raise InvalidModel("this is not an ONNX model", expected="what open_onnx returns", site=str(source.path))
        self._session = source.session
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        if "input_ids" not in self._inputs:
            self._refuse(f"its inputs are {', '.join(self._inputs) or 'none'}", "an input input_ids [batch, length]")
        outputs = {entry.name: entry for entry in self._session.get_outputs()}
        named = [name for name in outputs if name == "logits"] or [n for n, o in outputs.items() if len(o.shape) == 3]
        if len(named) != 1:
            self._refuse(f"its outputs are {', '.join(outputs)}", "one output logits [batch, length, vocabulary]")
        self._output = named[0]
        for entry in self._inputs.values():  # before any work: what cannot be fed is refused now
            self._feed(entry, np.zeros((1, 1), dtype=np.int64))

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids `[n, length]` to logits `[n, length, vocabulary]` in float32.

        Raises:
            InvalidModel: the model takes another length, or does not give logits for every position.
        """
        batch, length = self._inputs["input_ids"].shape
        if isinstance(length, int) and length != ids.shape[1]:
            self._refuse(
                f"it takes {length} tokens and the windows have {ids.shape[1]}", f"windows of {length} tokens",
                mend=f"--length {length}",
            )  # fmt: skip
        step = batch if isinstance(batch, int) else max(1, LOGIT_TOKENS // ids.shape[1])
        return torch.cat([self._run(part.numpy(), step) for part in torch.split(ids, step)])

    @contextmanager
    def end(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Nothing comes after the logits: yields the identity."""
        yield lambda states: states

    def _run(self, ids: NDArray[np.int64], batch: int) -> Tensor:
        count, length = ids.shape
        if isinstance(self._inputs["input_ids"].shape[0], int) and count < batch:
            ids = np.concatenate([ids, np.repeat(ids[-1:], batch - count, axis=0)])  # a fixed batch is filled up
        feeds = {name: self._feed(entry, ids) for name, entry in self._inputs.items()}
        try:
            logits = self._session.run([self._output], feeds)[0]
        except Exception as error:
            raise InvalidModel(
                f"onnxruntime stopped: {' '.join(str(error).split())[:300]}", expected="a model that runs on token ids",
                mend="run it once by hand on one window; check its vocabulary and length", site=self._site,
            ) from error  # fmt: skip
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            self._refuse(
                f"{self._output} is {list(logits.shape)} for {count} windows of {length} tokens",
                "logits for every position",
                mend="export it without keeping the last logits only",
            )
        return torch.from_numpy(logits[:count].astype(np.float32))

    def _feed(self, entry: Any, ids: NDArray[np.int64]) -> NDArray[Any]:
        """What an input is given for these token ids: the whole text is read at once, so every cache is empty."""
        dtype = TYPES.get(entry.type)
        if dtype is None:
            self._refuse(f"the input {entry.name} is a {entry.type}", f"one of {', '.join(TYPES)}")
        if entry.name == "input_ids":
            return ids.astype(dtype)
        if entry.name == "attention_mask" and len(entry.shape) == 2:
            return np.ones(ids.shape, dtype=dtype)
        if entry.name in ("position_ids", "cache_position"):
            positions = np.arange(ids.shape[1], dtype=dtype)
            return positions if len(entry.shape) == 1 else np.broadcast_to(positions, ids.shape).copy()
        if entry.name == "token_type_ids":
            return np.zeros(ids.shape, dtype=dtype)
        if entry.name in SWITCHES:
            return np.full([1] * len(entry.shape), SWITCHES[entry.name], dtype=dtype)
        if not CACHE.search(entry.name):
            known = "input_ids, attention_mask, position_ids and caches of earlier tokens"
            self._refuse(f"it has an input {entry.name} {list(entry.shape)}", known)
        return np.zeros(self._empty(entry.name, entry.shape, len(ids)), dtype=dtype)

    def _empty(self, name: str, shape: Sequence[int | str | None], count: int) -> list[int]:
        """Shape of a cache of no tokens: the batch comes first, and one other dimension must be free to be zero."""
        free = [i for i, size in enumerate(shape) if i > 0 and (not isinstance(size, int) or size == 0)]
        if len(free) != 1:
            self._refuse(
                f"the cache {name} {list(shape)} cannot be left empty",
                "one dimension for the tokens before, not fixed",
                mend="export the model without a cache (use_cache=False, or the task text-generation)",
            )
        sizes = [0 if i in free else size for i, size in enumerate(shape)]
        return [count, *(size for size in sizes[1:] if isinstance(size, int))]

    @property
    def _site(self) -> str:
        return str(self.network.source.path)

    def _refuse(self, happened: str, expected: str, *, mend: str = "") -> NoReturn:
        mend = mend or "export a causal language model for text generation, without its cache"
        raise InvalidModel(happened, expected=expected, mend=mend, site=self._site)


def _tensors(model: Any) -> Iterator[Any]:
    """Every stored tensor of a model: of the graph, of graphs inside its nodes, and of its functions."""
    nodes = [node for function in model.functions for node in function.node]
    graphs = [model.graph]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            yield attribute.t
            yield from attribute.tensors
            graphs += [graph for graph in (attribute.g, *attribute.graphs) if graph.node or graph.initializer]


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"{name} is not installed", expected="onnx and onnxruntime, to score an ONNX model",
            mend="pip install 'pennyweight[onnx]'", site=str(path),
        ) from error  # fmt: skip
