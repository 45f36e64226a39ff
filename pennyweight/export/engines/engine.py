"""One engine's contract, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pennyweight.errors import InvalidFormat, PennyweightError
from pennyweight.export.contracts import (
    LARGE,
    Chosen,
    Contract,
    Pairs,
)
from pennyweight.export.files import Files, files_of
from pennyweight.export.memory import Memory
from pennyweight.formats import (
    Dense,
    Format,
    parse,
)
from pennyweight.formats.passing import Passing
from pennyweight.network.network import Network, Site

OUTSIDE = ("embedding", "head")  # roles of what lies outside the blocks


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine's contract.

    Args:
        name: as the user says it.
        file_format: what we write for it; `files` has what writes it and reads it back.
        checked_with: versions the row holds for, by package.
        evidence: how we know: `loaded` (it ran on our files) or `read` (from its sources).
        also: other kinds of files it reads, which are not written for it.
        own: types of its own quantizer by the bits they take, fewest first, where its probe can be asked to `quantize`.
        own_dtype: of the dense files which that quantizer begins with.
        reads: formats it loads, and those on the menu of a plan.
        dtypes: of scales and of tensors that stay dense.
        roles: kinds of sites that may be quantized.
        tables: formats offered for an embedding table, and for a head or both where they are one tensor; empty where
            what lies outside the blocks stays dense.
        least_outputs: smallest `out` of a quantized weight.
        least_inputs: smallest `in`.
        memory: what it holds while it runs.
        sizes_multiple: `out` and `in` of a quantized weight are multiples of it.
        fused_groups: sites that read one edge (q, k, v; gate, up) must get one format, because the engine joins them.
        notes: what a user should know before choosing it.
        snippet: how to load a model; `{path}` is where it lies.
        probe: program of `export/probes/` that runs it; empty where there is none.
        modules: that an interpreter must be able to import to run the probe.
        needs: packages beside `checked_with` that it takes.
        rounds: roundings of what layers read, with the weights they go with.
        caches: roundings of keys and values, with one scale a tensor.
        only: labels of the formats a user asked for, see `choosing`; empty for all on the menu.
    """

    name: str
    file_format: str
    checked_with: Mapping[str, str]
    evidence: str
    reads: Contract
    dtypes: frozenset[str]
    roles: frozenset[str]
    memory: Memory
    tables: tuple[Format, ...] = ()
    least_outputs: int = 1
    least_inputs: int = 1
    sizes_multiple: int = 1
    fused_groups: bool = False
    notes: tuple[str, ...] = ()
    snippet: str = field(repr=False)
    probe: str = ""
    modules: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    own_dtype: str = "float16"
    rounds: tuple[Pairs, ...] = ()
    caches: tuple[Passing, ...] = ()

    @property
    def version(self) -> str:
        """Such as `vllm 0.33.0`."""
        return ", ".join(f"{package} {version}" for package, version in self.checked_with.items())

    @property
    def files(self) -> Files:
        """What is written for it."""
        return files_of(self.file_format)

    def choosing(self, labels: Sequence[str]) -> Engine:
        """The same engine, of whose formats plans may choose these alone; tables may also become what they could.

        Args:
            labels: such as `int4 g128 sym`, `mxfp4`; none for the whole menu.

        Raises:
            UnknownName: no format is called so.
            InvalidFormat: the engine does not read it.
        """
        if not labels:
            return self
        formats = tuple(map(parse, labels))
        for label, format in zip(labels, formats, strict=True):
            dtypes = self.dtypes | {getattr(format, "scale_dtype", "")}
            if why := self.reads.refuses(self.name, format, (LARGE, LARGE), dtypes):
                raise InvalidFormat(
                    f"{label}: {why}", expected=f"formats that {self.name} reads",
                    mend="pennyweight list shows formats; or choose another engine with --for", site="--formats",
                )  # fmt: skip
        return replace(
            self, only=tuple(labels), reads=Chosen(self.reads, formats),
            tables=tuple(format for format in self.tables if format in formats) or self.tables,
        )  # fmt: skip

    def reading(self, passing: Passing, labels: Sequence[str]) -> Engine:
        """The same engine, of whose formats plans may choose those alone that go with a rounding of what layers read.

        Args:
            passing: the rounding.
            labels: formats that were asked for; none for all that go with it.

        Raises:
            InvalidFormat: none goes with it, or one that was asked for does not.
        """
        able = [weight for pairs in self.rounds if passing in pairs.inputs for weight in pairs.weights]
        alone = [label for label in labels if self.refuses_input(parse(label), passing)]
        if not able or alone:
            known = sorted({one.label() for pairs in self.rounds for one in pairs.inputs})
            raise InvalidFormat(
                f"{self.name} has no product of {alone[0]} weights and {passing.label()}" if able
                else f"{self.name} does not round what layers read to {passing.label()}",
                expected=f"weights in {', '.join(w.label() for w in able)}" if able else
                f"one of {', '.join(known)}" if known else "an engine that does: transformers or vllm",
                mend="pennyweight list shows what each engine takes", site="--activations",
            )  # fmt: skip
        return self.choosing(labels or [weight.label() for weight in able])

    def refuses_input(self, format: Format, passing: Passing) -> str | None:
        """Why a layer with weights in this format cannot round what it reads like this; None when it can."""
        if any(pairs.takes(format, passing) for pairs in self.rounds):
            return None
        return f"{self.name} has no product of {format.label()} weights and {passing.label()}"

    def opens(self, path: Path) -> bool:
        """Whether the model that lies at a path is stored in files that it reads, whoever wrote them."""
        return any(files_of(kind).opens(path) is not None for kind in (self.file_format, *self.also))

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Format, ...]:
        """Formats worth choosing from that fit all of the given input sizes."""
        return self.reads.menu(columns, dtype)

    def menu_of(self, sites: Sequence[Site], dtype: str) -> tuple[Format, ...]:
        """Formats worth choosing from for sites that get one decision."""
        if self.tables and any(site.role in OUTSIDE for site in sites):
            return self.tables
        return self.menu([site.shape[1] for site in sites], dtype)

    def refuses_all(self, network: Network, dtype: str) -> str | None:
        """Why nothing of a network can be written for the engine, in plain words; None when something can."""
        try:
            self.files.check(network, {}, dtype)
        except PennyweightError as error:
            return f"{error.happened} (for {self.name}: {error.expected})"
        return None

    def refuses(self, site: Site, format: Format, network: Network) -> str | None:
        """Why the engine cannot load this site in this format, in plain words; None when it can.

        Whether sites it joins agree is a question about several sites: see `fused_groups`.
        """
        if isinstance(format, Dense):
            return None if format.dtype in self.dtypes else f"{self.name} takes no tensors in {format.dtype}"
        kind = {"embedding": "a quantized embedding table", "head": "a quantized output head"}
        if site.role not in self.roles:
            return f"{self.name} cannot load {kind.get(site.role, f'a quantized {site.role}')}"
        stored = network.stored_name(site.parameter)
        if "embedding" not in self.roles and any(stored in names for names in network.tied):
            return f"it shares its tensor with the embedding table, which {self.name} needs dense"
        outputs, inputs = site.shape
        if outputs < self.least_outputs or inputs < self.least_inputs:
            return f"{self.name} needs at least {self.least_outputs} outputs and {self.least_inputs} inputs"
        if outputs % self.sizes_multiple or inputs % self.sizes_multiple:
            return f"{self.name} needs outputs and inputs that are multiples of {self.sizes_multiple}"
        return self.reads.refuses(self.name, format, site.shape, self.dtypes)


def how_to_load(engine: Engine, path: str | Path) -> str:
    """Write a few lines that a user can paste."""
    return engine.snippet.format(path=path)
