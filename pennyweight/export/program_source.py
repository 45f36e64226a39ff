"""What both readers of programs answer alike: everything about a directory but its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pennyweight.network.sources.source import AUXILIARY_SUFFIXES, NOT_AUXILIARY, TensorInfo, fingerprint_of


class ProgramSource:
    """A directory with a program, files of weights and config.json.

    A reader sets `path`, `files` of program and weights, and `tensors`.
    """

    kind: str
    path: Path
    files: Sequence[Path]
    tensors: Mapping[str, TensorInfo]

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Tokenizer and the like, as paths."""
        files = [file for file in self.path.iterdir() if file.is_file() and file.name not in NOT_AUXILIARY]
        return {file.name: file for file in sorted(files) if file.suffix.lower() in AUXILIARY_SUFFIXES}

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over the contents of program, weights and config.json."""
        return fingerprint_of([*self.files, self.path / "config.json"])

    @property
    def stored_bytes(self) -> int:
        """Size of program and weights."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def description(self) -> str:
        """How many tensors of which format."""
        counts = Counter(info.dtype for info in self.tensors.values())
        listed = ", ".join(f"{n} {dtype}" for dtype, n in counts.most_common())
        return f"{self.kind}, {len(self.tensors)} tensors: {listed}"
