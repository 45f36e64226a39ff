"""Where weights stay until they are needed: headers are read and checked first, tensors only when asked for."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pennyweight.errors import CorruptFile, InvalidModel, InvalidWeights, MissingFile, PennyweightError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors format itself
CHUNK = 1 << 22  # bytes hashed at once

# What belongs beside a copy of the model: tokenizer, templates, model card, licence, remote code. Not weights.
AUXILIARY_SUFFIXES = frozenset({".json", ".jinja", ".md", ".model", ".py", ".tiktoken", ".txt"})
AUXILIARY_STEMS = ("license", "licence", "notice", "use_policy")
NOT_AUXILIARY = frozenset({"config.json", "trainer_state.json", "training_args.json"})


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of a tensor before any of it is read.

    Args:
        name: the parameter's name in transformers.
        shape: as `Source.read` returns it.
        dtype: `float32`, `bfloat16`, `int32` ..., or a GGUF type such as `q4_1`.
        bytes: as stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@runtime_checkable
class Source(Protocol):
    """A model on disk: its configuration, and tensors that are read one at a time."""

    @property
    def path(self) -> Path:
        """The directory or file it was opened from."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json holds, or would hold."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by the name transformers gives it."""
        ...

    @property
    def fingerprint(self) -> str:
        """The sha256 over the contents of weights and configuration, whatever the files are called."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Size of the weight files."""
        ...

    @property
    def description(self) -> str:
        """One line for a person."""
        ...

    def read(self, name: str) -> Tensor:
        """Read a fresh tensor that owns its memory, in the stored dtype (float32 where codes are stored)."""
        ...

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Every other file that belongs beside a copy of the model, by relative name."""
        ...


class Derived:
    """What sources that are made from another one have in common: only its tensors are theirs.

    Args:
        source: the one they are made from; subclasses set it.
    """

    source: Source

    @property
    def path(self) -> Path:
        """Where the weights were opened from."""
        return self.source.path

    @property
    def module(self) -> nn.Module | None:
        """The module in memory whose code runs, if the source is one."""
        return getattr(self.source, "module", None)

    @property
    def activations(self) -> Any:
        """What the files say is rounded while the network runs, where they can say it."""
        return getattr(self.source, "activations", None)

    @property
    def config(self) -> Mapping[str, Any]:
        """That of the source."""
        return self.source.config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Those of the source, unless a subclass changes them."""
        return self.source.tensors

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors, as they would be stored now."""
        return sum(info.bytes for info in self.tensors.values())

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Those of the source."""
        return self.source.auxiliary()


@dataclass(frozen=True)
class _Extent:
    """Where the bytes of one tensor lie."""

    file: Path
    start: int
    dtype: torch.dtype


class SafetensorsSource:
    """A model directory in the layout of the Hugging Face hub: config.json beside one or several safetensors files.

    Args:
        directory: the model directory. Its headers are read and checked at once, its tensors only by `read`.

    Raises:
        MissingFile: the directory, its config.json or a shard is not there.
        InvalidModel: not a model directory, or weights in a form that cannot be read.
        CorruptFile: a file's bytes are not what its header says, or two files contradict each other.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(directory)
        if not self.path.is_dir():
            raise MissingFile(
                "there is no such directory" if not self.path.exists() else "this is a file",
                expected="a model directory with config.json and *.safetensors",
                mend="check the path; for a .gguf file pass the file itself",
                site=str(self.path),
            )
        self.config: Mapping[str, Any] = read_json_object(self.path / "config.json")
        self.files, index = _weight_files(self.path)
        tensors: dict[str, TensorInfo] = {}
        self._extents: dict[str, _Extent] = {}
        for file in self.files:
            for info, extent in _read_header(file):
                if info.name in tensors:
                    raise CorruptFile(
                        f"{info.name} is stored twice, in {self._extents[info.name].file.name} and {file.name}",
                        expected="every tensor in one file",
                        mend="remove the file that does not belong to this model, or download it again",
                        site=str(self.path),
                    )
                tensors[info.name], self._extents[info.name] = info, extent
        for name, shard in index.items():
            if name not in tensors or self._extents[name].file.name != shard:
                raise CorruptFile(
                    f"{name} is not in {shard}, where the index says it is",
                    expected=f"an index that agrees with the files it lists ({INDEX})",
                    mend="download the shard and the index again, from the same revision",
                    site=str(self.path),
                )
        if not tensors:
            raise InvalidModel(
                "its safetensors files hold no tensor",
                expected="weights",
                mend="download the model again, or pass the directory that holds it",
                site=str(self.path),
            )
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory of its own.

        A plain read, not a memory map: mapped pages count as ours for as long as the map lives.

        Raises:
            InvalidModel: there is no such tensor.
            CorruptFile: the file became shorter since it was opened.
        """
        info = find_tensor(self.tensors, name, self.path)
        extent = self._extents[name]
        raw = torch.empty(info.bytes, dtype=torch.uint8)
        with extent.file.open("rb", buffering=0) as file:
            file.seek(extent.start)
            fill(raw, file, extent.file)
        return raw.view(extent.dtype).reshape(info.shape)

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Tokenizer, templates, model card, licence and remote code, as paths."""
        here = (file for file in self.path.iterdir() if file.is_file() and _is_auxiliary(file.name))
        templates = (self.path / "additional_chat_templates").glob("*.jinja")
        return {file.relative_to(self.path).as_posix(): file for file in sorted([*here, *templates])}

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over the contents of the weight files and config.json; one pass over the files, once."""
        return fingerprint_of([*self.files, self.path / "config.json"])

    @cached_property
    def stored_bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def description(self) -> str:
        """How many tensors of which dtype."""
        counts = Counter(info.dtype for info in self.tensors.values())
        return f"{len(self.tensors)} tensors: " + ", ".join(f"{n} {dtype}" for dtype, n in counts.most_common())


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse a weight with NaN or infinite values.

    Raises:
        InvalidWeights: names the tensor and how many values are NaN or infinite.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    wide = tensor if tensor.element_size() > 1 else tensor.float()  # no extrema of 8-bit floats in torch
    if all(bool(extreme.isfinite()) for extreme in wide.aminmax()):  # NaN passes through; needs no mask as large as W
        return
    nan, infinite = int(wide.isnan().sum()), int(wide.isinf().sum())
    raise InvalidWeights(
        f"{nan} of {wide.numel()} values are NaN and {infinite} are infinite",
        expected="finite weights",
        mend="the file is damaged, or training diverged: download it again, or use an earlier checkpoint",
        site=name,
    )


def find_tensor(tensors: Mapping[str, TensorInfo], name: str, path: Path) -> TensorInfo:
    """Look up a tensor's entry; an unknown name is an InvalidModel error that lists the nearest ones."""
    if name in tensors:
        return tensors[name]
    near = difflib.get_close_matches(name, tensors, n=3, cutoff=0.5)
    raise InvalidModel(
        f"there is no tensor {name}",
        expected="; nearest: ".join([f"one of {len(tensors)} tensors", *([", ".join(near)] if near else [])]),
        mend="check that config.json and the weights belong to the same model",
        site=str(path),
    )


def fill(raw: Tensor, file: FileIO, site: Path) -> None:
    """Read the file from where it stands until the byte tensor is full; one system call reads at most 2 GiB."""
    view = memoryview(raw.numpy())  # type: ignore[arg-type]
    position = 0
    while position < len(view):
        count = file.readinto(view[position:])
        if not count:
            raise _truncated(site, f"{len(view) - position} bytes short of the end of a tensor")
        position += count


def fingerprint_of(files: Iterable[Path]) -> str:
    """Hash (sha256) the sorted sha256 of each file, so that names and order do not matter."""
    digests = []
    buffer = memoryview(bytearray(CHUNK))
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
        digests.append(digest.hexdigest())
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        MissingFile: it is not there.
        CorruptFile: it is not JSON, or something other than an object.
    """
    if not path.is_file():
        raise MissingFile(
            f"there is no {path.name}",
            expected="a model directory with config.json and *.safetensors",
            mend="download the whole model, not only its weights; for an adapter, merge it into its model first",
            site=str(path.parent),
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, brackets without end
        raise CorruptFile(
            f"not JSON: {error}", expected="a JSON object", mend="download it again", site=str(path)
        ) from error
    if not isinstance(value, dict):
        raise CorruptFile(
            f"holds a JSON {type(value).__name__}", expected="a JSON object", mend="download it again", site=str(path)
        )
    return value


@contextmanager
def as_described(refusal: Callable[[str], PennyweightError]) -> Iterator[None]:
    """Refuse what is not of the form that its description should have, wherever reading it stumbles.

    Args:
        refusal: makes the error, from what went wrong.

    Raises:
        PennyweightError: the refusal.
    """
    try:
        yield
    except PennyweightError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, re.error) as error:
        said = str(error).splitlines()[0][:200] if str(error) else "no reason given"
        raise refusal(f"{type(error).__name__}: {said}") from error


def is_shape(sizes: Sequence[int]) -> bool:
    """Whether a tensor can have these sizes: none below zero, and those above it no more than can be counted."""
    return min(sizes, default=0) >= 0 and math.prod(max(size, 1) for size in sizes) < 1 << 63


def is_there(path: Path) -> bool:
    """Whether this is a file, though its name may be one that no file can have."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any file
        return False


def _weight_files(directory: Path) -> tuple[tuple[Path, ...], Mapping[str, str]]:
    """Find the safetensors files of a model, and its index (empty when there is none)."""
    single = directory / "model.safetensors"
    if single.is_file():
        return (single,), {}
    if (directory / INDEX).is_file():
        weight_map = read_json_object(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise CorruptFile("holds no weight_map", expected='{"weight_map": {tensor: file}}', site=INDEX)
        shards = sorted(set(weight_map.values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
        if outside:
            raise CorruptFile(f"lists {outside[0]!r}", expected="names of files in the same directory", site=INDEX)
        missing = [shard for shard in shards if not is_there(directory / shard)]
        if missing:
            raise MissingFile(
                f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing)[:400]}",
                expected=f"every file that {INDEX} lists",
                mend="download the missing files",
                site=str(directory),
            )
        return tuple(directory / shard for shard in shards), weight_map
    found = sorted(directory.glob("*.safetensors"))
    if (directory / "adapter_config.json").is_file():
        raise InvalidModel(
            "this is an adapter, not a model",
            expected="the weights of a whole network",
            mend="merge it into its base model first (peft: merge_and_unload, then save_pretrained)",
            site=str(directory),
        )
    if len(found) == 1 and not re.search(r"-\d+-of-\d+$", found[0].stem):
        return (found[0],), {}
    if found:
        raise MissingFile(
            f"{len(found)} safetensors file{'s' if len(found) > 1 else ''} and no {INDEX}",
            expected="model.safetensors, or shards and their index",
            mend="download the index from where the model came from",
            site=str(directory),
        )
    pickled = sorted([*directory.glob("pytorch_model*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")])
    raise InvalidModel(
        f"only pickled weights ({pickled[0].name}) and no safetensors file" if pickled else "no safetensors file",
        expected="model.safetensors, or shards and their index",
        mend="convert it: AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new_directory)"
        if pickled
        else "download the weights in safetensors form, or pass a .gguf file",
        site=str(directory),
    )


@dataclass(frozen=True)
class Entry:
    """One tensor as the header of a safetensors file lists it.

    Args:
        name: of the tensor.
        dtype: as the format calls it, such as `BF16`.
        shape: as written.
        start: first byte, counted from the end of the header.
        stop: the byte behind the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_entries(file: Path) -> tuple[int, list[Entry]]:
    """List what a safetensors file holds, by place, and where its data begins; what an entry says is not yet checked.

    Source: the safetensors format, https://github.com/huggingface/safetensors: eight bytes of header length, little
    endian, the header as JSON, then the tensors without gaps.

    Raises:
        CorruptFile: the header is longer than the file, or not what the format prescribes.
    """
    size = file.stat().st_size
    if size < 8:
        raise _truncated(file, "the file is empty" if size == 0 else f"the file has {size} bytes")
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(size - 8, HEADER_LIMIT):
            raise _truncated(file, f"its header claims {length} bytes and the file has {size}")
        text = stream.read(length)
    try:
        entries = [
            Entry(name, str(entry["dtype"]), tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for name, entry in json.loads(text).items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptFile(
            f"its header is not what the format prescribes ({type(error).__name__}: {error})",
            expected="JSON with dtype, shape and data_offsets of every tensor",
            mend="download the file again",
            site=str(file),
        ) from error
    return 8 + length, sorted(entries, key=lambda entry: (entry.start, entry.stop, entry.name))


def _read_header(file: Path) -> list[tuple[TensorInfo, _Extent]]:
    """List every tensor of one safetensors file, checked against the size of the file."""
    data, entries = read_entries(file)
    tensors, position, size = [], 0, file.stat().st_size
    for entry in entries:
        name, kind, shape, start, stop = entry.name, entry.dtype, entry.shape, entry.start, entry.stop
        if kind not in DTYPES:
            raise InvalidModel(
                f"{name} is stored as {kind}", expected=f"one of {', '.join(DTYPES)}", mend="", site=str(file)
            )
        dtype = DTYPES[kind]
        if start != position or not is_shape(shape) or stop - start != math.prod(shape) * dtype.itemsize:
            raise CorruptFile(
                f"{name} with shape {list(shape)} and dtype {kind} is said to lie in bytes {start} to {stop}",
                expected=f"{math.prod(shape) * dtype.itemsize} bytes from {position} on, without gap or overlap",
                mend="download the file again",
                site=str(file),
            )
        position = stop
        info = TensorInfo(name, shape, str(dtype).removeprefix("torch."), stop - start)
        tensors.append((info, _Extent(file, data + start, dtype)))
    if data + position > size:
        raise _truncated(file, f"its tensors need {data + position} bytes and the file has {size}")
    if data + position < size:
        raise CorruptFile(
            f"{size - data - position} bytes follow the last tensor",
            expected=f"a file of {data + position} bytes",
            mend="download the file again",
            site=str(file),
        )
    return tensors


def _truncated(file: Path, happened: str) -> CorruptFile:
    return CorruptFile(
        happened,
        expected="a complete file",
        mend="the download or copy broke off (or left a git-lfs pointer): fetch the file again",
        site=str(file),
    )


def _is_auxiliary(name: str) -> bool:
    lower = name.lower()
    if lower.startswith(".") or lower in NOT_AUXILIARY or lower.endswith(".index.json"):
        return False
    return Path(lower).suffix in AUXILIARY_SUFFIXES or lower.startswith(AUXILIARY_STEMS)
