"""Look at a module while it runs on calibration data: what every weight multiplies, and how much the outputs mind it.

One pass forward keeps the gram matrix of everything a weight multiplies: patches for kernels, one for each group of
channels, and one for each expert of the tokens that were sent to it. There a token may count by its gate
(`network/running/affinity.py`).

A few passes backward measure how much the outputs mind. For outputs y and a random direction v with E[v vᵀ] = I, the
derivative G of v·y by a weight gives E[(v·Δy)²] = ‖Δy‖² for a change E of the weight, and Δ(v·y) = Σ G ∘ E. Errors of
rounding have independent signs, so that

    damage = ½ ‖Δy‖² / ‖y‖²  ≈  ½ Σ_oi sensitivity_oi E_oi²,    sensitivity = mean of G² / ‖y‖², over items

This is the Gauss-Newton matrix of the squared error, its diagonal over weights, and counts what an output-wise one does
not: positions of one item that are pooled share a derivative. It is in shares of the outputs, whatever they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pennyweight.errors import InvalidMeasurement
from pennyweight.flow.modules.held_out import Batch, Outputs, checked
from pennyweight.flow.progress import Progress
from pennyweight.network.network import Network, Site
from pennyweight.network.running.affinity import weighing
from pennyweight.network.running.reading import reading
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics

DRAWS = 16  # backward passes: a weight's derivative is noisy, the sum over a row is not
TRIAL = 0.02  # size of a random change of a weight, relative, where outputs cannot be differentiated


@dataclass(eq=False)
class Seen:
    """What was seen of one weight.

    Args:
        grams: second moments of what each part multiplies `[parts, in, in]`, sums; None before it ran.
        counts: rows that each part saw `[parts]`.
        shares: of those rows, summed `[parts]`: as many as rows, unless their gates weigh them.
        sensitivity: of the outputs to each row of the matrix, summed over its inputs `[out]`.
        first: whether it reads what the network is fed.
        place: in the order in which weights ran first; -1 for one that never did.
    """

    sensitivity: Float[Tensor, " out"]
    grams: Float[Tensor, "parts n n"] | None = None
    counts: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    first: bool = False
    place: int = -1

    @property
    def parts(self) -> int:
        """Experts, or groups of channels, that read apart from each other."""
        return max(1, len(self.counts))

    def add(
        self, rows: Float[Tensor, "parts n in"], part: int | None, parts: int,
        share: Float[Tensor, "parts n"] | None = None,
    ) -> None:  # fmt: skip
        """Count rows of one part, or of all of them; each fully, or by a share of its own."""
        parts = parts if part is not None else len(rows)
        if self.grams is None:
            self.grams = torch.zeros(parts, rows.shape[-1], rows.shape[-1])
            self.counts, self.shares = [0] * parts, [0.0] * parts
        moments = (rows if share is None else rows * share[..., None]).mT @ rows
        sums = [float(rows.shape[1])] * len(rows) if share is None else share.sum(1, dtype=torch.float64).tolist()
        for number, own in enumerate(range(parts) if part is None else [part]):
            self.grams[own] += moments[number]
            self.counts[own] += rows.shape[1]
            self.shares[own] += sums[number]

    def statistics(self, name: str, *, together: bool = False) -> Sequence[tuple[Statistics | None, bool]]:
        """Of each part, and whether they are those of all parts together, for want of rows of its own.

        One part without any where nothing was seen, and where every output reads a few inputs of its own; one for all
        parts `together`, for what is stored once for all of them.
        """
        if self.grams is None or self.parts == len(self.sensitivity):
            return [(None, False)]
        pooled = self.grams.sum(0) / _positive(sum(self.shares))
        if together:
            return [(Statistics(edge=name, count=sum(self.counts), gram=pooled), False)]
        found: list[tuple[Statistics | None, bool]] = []
        for gram, count, share in zip(self.grams, self.counts, self.shares, strict=True):
            few = self.parts > 1 and count < len(gram)  # fewer rows than inputs do not span what may come
            found.append(
                (Statistics(edge=name, count=count, gram=pooled if few else gram / _positive(share)), few)
            )  # fmt: skip
        return found


def _positive(total: float) -> float:
    return total if total > 0 else 1.0


def sites_by_tensor(network: Network) -> dict[str, tuple[Site, ...]]:
    """Sites of every stored tensor; the first is the one whose matrix is compressed: no table, if there is a choice."""
    found: dict[str, list[Site]] = {}
    for site in network.sites:
        found.setdefault(network.stored_name(site.parameter), []).append(site)
    return {name: tuple(sorted(sites, key=lambda s: s.role == "embedding")) for name, sites in found.items()}


def look(
    module: nn.Module, network: Network, calibration: Sequence[Batch], outputs: Outputs, *, seed: int,
    progress: Progress, affinity: float = 0.0,
) -> dict[str, Seen]:  # fmt: skip
    """Statistics of every tensor that sites store, by its name.

    Args:
        module: a copy that may be differentiated.
        network: its sites.
        calibration: keyword arguments of its forward.
        outputs: what the claims are about.
        seed: of the random directions.
        progress: told about every pass.
        affinity: power of the gate by which a token counts among those of an expert; 0 counts all alike.

    Raises:
        InvalidMeasurement: outputs that are not finite.
    """
    sites = sites_by_tensor(network)
    parameters = dict(module.named_parameters())
    found = {name: Seen(torch.zeros(main.shape[0])) for name, (main, *_) in sites.items()}
    counted = _counted_by(sites)

    def see(name: str, rows: Tensor, part: int | None, gates: Tensor | None = None) -> None:
        if counted[name] == name:
            share = None if gates is None else gates.abs() ** affinity
            found[name].add(rows, part, parameters[name].shape[0], share)

    weights = {name: parameters[name] for name in sites}
    with (
        progress.stage("collecting statistics", len(calibration)) as advance,
        torch.no_grad(),
        (weighing if affinity else reading)(weights, see) as mode,
    ):
        for number, batch in enumerate(calibration):
            mode.given = [leaf for leaf in tree_leaves(dict(batch)) if isinstance(leaf, Tensor)]
            checked(outputs(module, batch), f"calibration batch {number}")
            mode.flush()
            advance()
    places = {name: place for place, name in enumerate(mode.order)}
    for name, seen in found.items():
        seen.first, seen.place = name in mode.first, places.get(name, -1)
        own = found[counted[name]]
        seen.grams, seen.counts, seen.shares = own.grams, own.counts, own.shares
    with progress.stage("measuring sensitivity", DRAWS) as advance:
        for draw in range(DRAWS):
            batch = calibration[draw * len(calibration) // DRAWS]
            if not _add_sensitivity(module, batch, outputs, sites, found, stream(seed, "direction", str(draw))):
                break
            advance()
    return found


def _counted_by(sites: Mapping[str, tuple[Site, ...]]) -> dict[str, str]:
    """The tensor that counts for each tensor: matrices that read one edge read the same rows."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for name, (main, *others) in sites.items():
        alone = others or main.role in ("conv", "experts", "embedding")
        found[name] = name if alone else first.setdefault(main.reads, name)
    return found


def _add_sensitivity(
    module: nn.Module, batch: Batch, outputs: Outputs, sites: Mapping[str, tuple[Site, ...]],
    found: Mapping[str, Seen], generator: torch.Generator,
) -> bool:  # fmt: skip
    """Add what one batch shows along one random direction; False if all that can be shown has been."""
    parameters = {name: p for name, p in module.named_parameters() if name in sites}
    for parameter in parameters.values():
        parameter.requires_grad_()
    try:
        with torch.enable_grad():
            y = _flat(outputs(module, batch))
        if not y.requires_grad:
            _try_changes(module, batch, outputs, y, parameters, found, generator)
            return False
        direction = torch.randn(y.shape, generator=generator).to(y)
        grads = torch.autograd.grad(y, list(parameters.values()), direction, allow_unused=True)
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    size = float(y.detach().square().sum().clamp(min=1e-30))
    for name, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            found[name].sensitivity += sites[name][0].matrix(grad).float().square().sum(1) / (size * DRAWS)
    return True


def _try_changes(
    module: nn.Module, batch: Batch, outputs: Outputs, y: Tensor, parameters: Mapping[str, nn.Parameter],
    found: Mapping[str, Seen], generator: torch.Generator,
) -> None:  # fmt: skip
    """Where outputs cannot be differentiated: change every weight a little, and see what becomes of them."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            before = parameter.detach().clone()
            step = TRIAL * float(before.float().square().mean().sqrt()) + 1e-30
            parameter.add_(step * torch.randn(before.shape, generator=generator).to(before))
            moved = float((_flat(outputs(module, batch)) - y).square().sum() / y.square().sum().clamp(min=1e-30))
            parameter.copy_(before)
            found[name].sensitivity += moved / step**2 / len(found[name].sensitivity)


def _flat(outputs: Any) -> Tensor:
    leaves = [torch.as_tensor(leaf) for leaf in tree_leaves(outputs)]
    floats = [leaf.float().flatten() for leaf in leaves if leaf.is_floating_point()]
    if not floats:
        raise InvalidMeasurement(
            "the outputs hold no floats", expected="numbers that a change of the weights moves, such as scores",
            mend="return the scores and let the metric choose", site="outputs",
        )  # fmt: skip
    return torch.cat(floats)
