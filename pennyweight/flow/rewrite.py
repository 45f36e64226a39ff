"""Rewrite a network: choose transforms, fold them in, and look whether its function stayed what it was.

Every rewrite is held to a probe before and after it, in float64 and with unrounded weights: what is left is the
rounding of the arithmetic. Storing the result rounds once more, and that is measured too and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pennyweight import catalogue
from pennyweight.corpus import Windows
from pennyweight.errors import MissingStatistics, NotEquivalent
from pennyweight.flow.observe import observe
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.network.fold import Rewritten
from pennyweight.network.network import Network
from pennyweight.network.run import change, outputs
from pennyweight.network.trace import symmetries_of
from pennyweight.numerics.random import stream

LARGEST_CHANGE = (
    1e-10  # relative, in float64: a thousand times what rounding a few blocks does, and far below any mistake
)


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
    seed: int = 0, progress: Progress = QUIET,
) -> tuple[Network, tuple[Step, ...]]:  # fmt: skip
    """Apply rewrites one after the other; the result is a network like any other, its weights folded as they are read.

    Args:
        network: of a model on disk or of a module in memory.
        methods: names in the room of rewrites, with arguments if any, or objects.
        calibration: windows of text, or keyword arguments of forward passes; for methods that need statistics.
        seed: of random rotations.
        progress: told about every step.

    Raises:
        UnknownName: no rewrite has that name.
        MissingStatistics: a method needs calibration data and none was given.
        InvalidTransform: an edge does not let a transform through.
        NotEquivalent: the network's function changed by more than rounding explains.
    """
    found = [catalogue.find(method, "rewrites") for method in methods]
    first = before = outputs(network)
    steps: list[Step] = []
    known = symmetries_of(network)
    for number, method in enumerate(found):
        with progress.stage(f"rewriting with {method.name}", 1):
            if hasattr(method, "rewrite"):
                network, edges = method.rewrite(network), ()
                known = symmetries_of(network)
            else:
                statistics = {}
                if method.needs:
                    if calibration is None:
                        raise MissingStatistics(
                            f"{method.name} looks at activations", expected="calibration data",
                            mend="--calibration text.txt, or calibration=[…] in Python", site=method.name,
                        )  # fmt: skip
                    statistics = observe(network, calibration, gram="gram" in method.needs)
                generator = stream(seed, method.name, str(number))
                folds = method.choose(known, network.source, statistics, generator=generator)
                edges = tuple(fold.symmetry.name for fold in folds)
                earlier = network.source.folds if isinstance(network.source, Rewritten) else ()
                base = network.source.source if isinstance(network.source, Rewritten) else network.source
                network = replace(network, source=Rewritten(base, [*earlier, *folds]))
            after = outputs(network)
        moved = change(before, after)
        if not moved <= LARGEST_CHANGE:
            raise NotEquivalent(
                f"{method.name} changed the network's outputs by {moved:.2e}, relative, in float64",
                expected=f"at most {LARGEST_CHANGE:.0e}, which is rounding",
                mend="a mistake in the method or in the edge's symmetry: report it with the model's config.json",
                site=next(iter(edges), method.name),
            )  # fmt: skip
        steps.append(
            Step(method=_label(method), edges=edges, change=moved, stored=change(first, outputs(network, exact=False)))
        )  # fmt: skip
        before = after
    return network, tuple(steps)


def _label(method: Any) -> str:
    changed = {k: v for k, v in vars(method).items() if v != getattr(type(method)(), k)}
    return str(method.name) + (f"({', '.join(f'{k}={v!r}' for k, v in changed.items())})" if changed else "")
