"""Rewrite a network: choose transforms, fold them in, and look whether its function stayed what it was.

Every rewrite is held to a probe before and after it, in float64 and with unrounded weights: what is left is the
rounding of the arithmetic. Storing the result rounds once more, and that is measured too and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from pennyweight import catalogue
from pennyweight.corpus import Windows
from pennyweight.errors import InvalidModel, MissingStatistics, NotEquivalent
from pennyweight.flow.journal import Journal
from pennyweight.flow.observe import observe
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.network.changing.fold import Fold, Rewritten, Transform
from pennyweight.network.changing.rebuild import Rebuilt
from pennyweight.network.finding.symmetry import Symmetry
from pennyweight.network.finding.trace import symmetries_of
from pennyweight.network.network import Network
from pennyweight.network.running.rounding import roundings_of
from pennyweight.network.running.run import change, outputs
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics

LARGEST_CHANGE = (
    1e-10  # relative, in float64: a thousand times what rounding a few blocks does, and far below any mistake
)
PARTS = ("scale", "order", "matrix", "shift")  # of a transform


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one rewrite did.

    Args:
        method: with its arguments.
        edges: names of the edges whose basis changed.
        change: of the network's outputs, relative, in float64 and unrounded.
        stored: the same once the weights are rounded to the type they are stored in, since the beginning.
    """

    method: str
    edges: tuple[str, ...]
    change: float
    stored: float


def rewrite(
    network: Network, methods: Iterable[str | Any], *, calibration: Windows | Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0, journal: Journal | None = None, progress: Progress = QUIET,
) -> tuple[Network, tuple[Step, ...]]:  # fmt: skip
    """Apply rewrites one after the other; the result is a network like any other, its weights folded as they are read.

    Args:
        network: of a model on disk or of a module in memory.
        methods: names in the room of rewrites, with arguments if any, or objects.
        calibration: windows of text, or keyword arguments of forward passes; for methods that need statistics.
        seed: of random rotations.
        journal: of a run; what is chosen and probed there is not chosen and probed again.
        progress: told about every step.

    Raises:
        UnknownName: no rewrite has that name.
        MissingStatistics: a method needs calibration data and none was given.
        InvalidTransform: an edge does not let a transform through.
        NotEquivalent: the network's function changed by more than rounding explains.
        InvalidModel: its files say that activations are rounded.
    """
    found = check_rewrites(methods, calibrated=calibration is not None)
    if found and roundings_of(network.source):
        raise InvalidModel(
            "its files round what layers read, over ranges that a change of basis moves",
            expected="a model before activations were rounded", mend="rewrite that one, then round",
            site=str(network.source.path),
        )  # fmt: skip
    network = _once(network) if found else network
    original, steps = network, list[Step]()
    first: Tensor | None = None
    before: Tensor | None = None
    known: tuple[Symmetry, ...] | None = None
    for number, method in enumerate(found):
        with progress.stage(f"rewriting with {method.name}", 1):
            piece, folds = f"rewrites/{number:02d}.safetensors", tuple[Fold, ...]()
            resumed = journal is not None and journal.has(piece)
            if not resumed:
                first = outputs(original) if first is None else first
                before = first if number == 0 else outputs(network) if before is None else before
            if hasattr(method, "rewrite"):
                network, known = method.rewrite(network), None
            else:
                known = symmetries_of(network) if known is None else known
                if journal is not None and resumed:
                    folds = _kept(journal, piece, known)
                else:
                    statistics = _statistics(method, network, calibration)
                    generator = stream(seed, method.name, str(number))
                    folds = method.choose(known, network.source, statistics, generator=generator)
                network = _folded(network, folds)
            if journal is not None and resumed:
                steps.append(_step(journal.facts(piece)["step"]))
                continue
            assert first is not None
            assert before is not None
            after = outputs(network)
            step = _checked(method, folds, change(before, after), change(first, outputs(network, exact=False)))
            steps.append(step)
            before = after
            if journal is not None:
                _keep(journal, piece, known or (), folds, step)
    return network, tuple(steps)


def check_rewrites(methods: Iterable[str | Any], *, calibrated: bool) -> list[Any]:
    """Find rewrites by name, before any work is done.

    Raises:
        UnknownName: no rewrite has that name.
        MissingStatistics: one needs calibration data and there will be none.
    """
    found = [catalogue.find(method, "rewrites") for method in methods]
    for method in found:
        if method.needs and not calibrated:
            raise MissingStatistics(
                f"{method.name} looks at activations", expected="calibration data",
                mend="--calibration text.txt, or calibration=[…] in Python", site=method.name,
            )  # fmt: skip
    return found


def label(method: Any) -> str:
    """A method with those of its arguments that are not the default."""
    usual = {field.name: field.default for field in fields(method)} if is_dataclass(method) else {}
    changed = {name: value for name in usual if (value := getattr(method, name)) != usual[name]}
    return str(method.name) + (f"({', '.join(f'{k}={v!r}' for k, v in changed.items())})" if changed else "")


def _once(network: Network) -> Network:
    """The network without second copies of tied tensors, which some checkpoints store: a fold would change only one."""
    stored = [[name for name in names if name in network.source.tensors] for names in network.tied]
    copies = frozenset(name for names in stored for name in names[1:])
    if not copies:
        return network
    return replace(network, source=Rebuilt(network.source, {}, what="tied tensors stored once", dropped=copies))


def _statistics(
    method: Any, network: Network, calibration: Windows | Sequence[Mapping[str, Any]] | None
) -> Mapping[str, Statistics]:
    if not method.needs:
        return {}
    assert calibration is not None
    return observe(network, calibration, gram="gram" in method.needs)


def _checked(method: Any, folds: Sequence[Fold], moved: float, stored: float) -> Step:
    edges = tuple(fold.symmetry.name for fold in folds)
    if not moved <= LARGEST_CHANGE:
        raise NotEquivalent(
            f"{method.name} changed the network's outputs by {moved:.2e}, relative, in float64",
            expected=f"at most {LARGEST_CHANGE:.0e}, which is rounding",
            mend="a mistake in the method or in the edge's symmetry: report it with the model's config.json",
            site=next(iter(edges), method.name),
        )  # fmt: skip
    return Step(method=label(method), edges=edges, change=moved, stored=stored)


def _folded(network: Network, folds: Sequence[Fold]) -> Network:
    earlier = network.source.folds if isinstance(network.source, Rewritten) else ()
    base = network.source.source if isinstance(network.source, Rewritten) else network.source
    return replace(network, source=Rewritten(base, [*earlier, *folds]))


def _keep(journal: Journal, piece: str, known: Sequence[Symmetry], folds: Sequence[Fold], step: Step) -> None:
    """Write what was chosen: transforms, by the number of their symmetry."""
    numbers = {id(symmetry): number for number, symmetry in enumerate(known)}
    tensors = {
        f"{place}.{part}": value.contiguous()
        for place, fold in enumerate(folds)
        for part in PARTS
        if (value := getattr(fold.transform, part)) is not None
    }
    chosen = [numbers[id(fold.symmetry)] for fold in folds]
    journal.save_tensors(piece, tensors, {"step": asdict(step), "symmetries": chosen})


def _kept(journal: Journal, piece: str, known: Sequence[Symmetry]) -> tuple[Fold, ...]:
    tensors = journal.load_tensors(piece)
    return tuple(
        Fold(known[number], Transform(**{part: tensors.get(f"{place}.{part}") for part in PARTS}))
        for place, number in enumerate(journal.facts(piece)["symmetries"])
    )


def _step(facts: Mapping[str, Any]) -> Step:
    return Step(**{**facts, "edges": tuple(facts["edges"])})
