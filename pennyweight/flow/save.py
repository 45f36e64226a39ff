"""Write a rewritten model as an ordinary dense checkpoint, and beside it what was done to it.

Every tensor is rounded once, from float64 to the type it is stored in, whatever was folded into it. The files are read
back and run: a network that its config.json cannot describe is not left behind as if it were one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from pennyweight.errors import InvalidModel, InvalidOutput, InvalidWeights, NotEquivalent
from pennyweight.export import write
from pennyweight.flow import artifact
from pennyweight.flow.load import load
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.rewrite import LARGEST_CHANGE, Step
from pennyweight.formats import Compressed
from pennyweight.network.changing.fold import STORED, exact
from pennyweight.network.network import Network, Site
from pennyweight.network.running.run import change, outputs
from pennyweight.network.sources.source import Derived, Source, TensorInfo
from pennyweight.numerics.hashing import of_value

DTYPES = ("float32", "bfloat16", "float16")
RECORD = "rewrite.json"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What was written.

    Args:
        out: the directory.
        dtype: of its tensors.
        bytes: of its files.
        change: of the outputs against the network before all rewrites, relative, in float64: rounding included.
        network: read from the files.
    """

    out: Path
    dtype: str
    bytes: int
    change: float
    network: Network


def save(
    before: Network, after: Network, steps: Sequence[Step], out: str | Path, *, dtype: str | None = None, seed: int = 0,
    progress: Progress = QUIET,
) -> Saved:  # fmt: skip
    """Write the files any tool loads; `out` appears when they are complete and were read back.

    Args:
        before: the network before it was rewritten.
        after: the rewritten one, of a model on disk.
        steps: what `rewrite` said it did.
        out: directory to make; must not exist or be empty.
        dtype: of all tensors; None takes the type most weights are in, float32 for codes.
        seed: that the rewrites were made with.
        progress: told about every tensor.

    Raises:
        InvalidModel: a module in memory, which has no config.json.
        InvalidOutput: `out` is not empty.
        InvalidWeights: a folded value is beyond what the type holds.
        NotEquivalent: config.json cannot say what this network is.
    """
    out = Path(out)
    if getattr(after.source, "module", None) is not None:
        raise InvalidModel(
            "a module in memory has no config.json to save", expected="a model on disk",
            mend="with materialised(network) as module (of network.running.run): save it as its library does",
            site=str(after.source.path),
        )  # fmt: skip
    check_empty(out)
    dtype = dtype or main_dtype(before)
    stored = replace(after, source=_AsStored(after, dtype))
    staged = out.absolute().with_name(out.absolute().name + ".part")
    shutil.rmtree(staged, ignore_errors=True)  # of a call that was killed
    try:
        staged.mkdir(parents=True)
        with progress.stage("writing", len(stored.source.tensors)) as advance:
            write(stored, {}, _nothing, staged, dtype=dtype, on_tensor=lambda _, __: advance(1)).reconcile()
        with progress.stage("reading back", 1):
            moved = _read_back(stored, staged, before)
        saved = load(staged)
        record = {
            "steps": [asdict(step) for step in steps], "seed": seed, "dtype": dtype, "change": moved,
            "before": before.source.fingerprint, "after": saved.source.fingerprint, "code": artifact.code_hash(),
        }  # fmt: skip
        artifact.write_record(staged, RECORD, record)
        if out.exists():
            out.rmdir()
        staged.rename(out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return Saved(out=out, dtype=dtype, bytes=artifact.size_on_disk(out), change=moved, network=load(out))


def check_empty(out: Path) -> None:
    """Refuse a directory that holds something.

    Raises:
        InvalidOutput: it does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidOutput(
            "the output directory is not empty" if out.is_dir() else "the output is a file",
            expected="a directory that does not exist yet, or an empty one", mend="choose another --out, or remove it",
            site=str(out),
        )  # fmt: skip


def main_dtype(network: Network) -> str:
    """The type most weights are stored in; float32 where that is none that a checkpoint is made of."""
    counts: dict[str, int] = {}
    for info in network.source.tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + prod(info.shape)
    most = max(counts, key=lambda dtype: counts[dtype])
    return most if most in DTYPES else "float32"


def _read_back(stored: Network, directory: Path, before: Network) -> float:
    """Run what was written beside what was meant; how far it is from the network before all rewrites."""
    read = outputs(load(directory), exact=False)
    meant = outputs(stored, exact=False)
    moved = change(meant, read) if meant.shape == read.shape else torch.inf
    if not moved <= LARGEST_CHANGE:
        raise NotEquivalent(
            f"the model that is read from the files returns something else ({moved:.2e}, relative)",
            expected="a structure that config.json can describe",
            mend="rewrite a module in memory instead, or leave out the rewrite that changes the structure",
            site=str(directory),
        )  # fmt: skip
    return change(outputs(before, exact=False), read)


def _nothing(site: Site) -> Compressed:
    raise AssertionError(f"{site.name} is not compressed")


class _AsStored(Derived):
    """A source with every float rounded once to one type, and every tied tensor under its first name alone."""

    def __init__(self, network: Network, dtype: str) -> None:
        self.source: Source = network.source
        self._dtype = dtype
        copies = {name for names in network.tied for name in names if name != network.stored_name(names[0])}
        self._tensors: Mapping[str, TensorInfo] = {
            name: self._info(info) for name, info in self.source.tensors.items() if name not in copies
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    @property
    def fingerprint(self) -> str:
        return of_value(["stored", self.source.fingerprint, self._dtype])

    @property
    def description(self) -> str:
        return f"in {self._dtype}; {self.source.description}"

    def read(self, name: str) -> Tensor:
        dtype = STORED[self.tensors[name].dtype]
        if not dtype.is_floating_point:
            return self.source.read(name)
        values = exact(self.source, name)
        largest = float(values.abs().max()) if values.numel() else 0.0
        if largest > torch.finfo(dtype).max:
            raise InvalidWeights(
                f"a folded value of {largest:.3g} is beyond what {self._dtype} holds",
                expected=f"values below {torch.finfo(dtype).max:.3g}", mend="--dtype bfloat16 or float32", site=name,
            )  # fmt: skip
        return values.to(dtype)

    def _info(self, info: TensorInfo) -> TensorInfo:
        if info.dtype in STORED and not STORED[info.dtype].is_floating_point:
            return info
        return replace(info, dtype=self._dtype, bytes=prod(info.shape) * STORED[self._dtype].itemsize)
