"""What every weight of a module could become, at what size and damage; and what stays as it is, with the reason.

Nothing is decided by name. A router is found by its shape: of all that lies nearest to a stack of n experts it has n
outputs. Weights that meet what the network is fed, the last one that runs, and those whose every output reads inputs of
its own are few and minded much: their options begin at 8 bits, and staying dense is one of them. What the outputs do
not depend on stays as it is, for nothing could be certified of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pennyweight.export.contracts import grids as menu
from pennyweight.flow.modules.look import Seen, sites_by_tensor
from pennyweight.flow.modules.store import dense_bytes, packed_bytes
from pennyweight.flow.options import SAMPLE, Table, predictor
from pennyweight.flow.progress import Progress
from pennyweight.formats import Dense, Grid
from pennyweight.methods.quantization import RoundToNearest
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import check_finite
from pennyweight.plan import Option, Stage, Step

CAREFUL = 8  # bits at least, where a weight is minded much


def tabulate(
    module: nn.Module, network: Network, seen: Mapping[str, Seen], *, bits: Sequence[int], method: str,
    embeddings: bool, dtype: str, progress: Progress,
) -> Table:  # fmt: skip
    """Predict size and damage of every option of every stored tensor that sites multiply by.

    Args:
        module: the reference.
        network: its sites.
        seen: of every tensor, by name.
        bits: code widths to choose from.
        method: the quantizer, by name.
        embeddings: whether tables may be stored at 8 bits.
        dtype: of scales and of everything dense.
        progress: told about every tensor.
    """
    parameters, sites, chosen_by = dict(module.named_parameters()), sites_by_tensor(network), routers(network, seen)
    last = max((s.place for s in seen.values() if bool(s.sensitivity.any())), default=-1)
    groups: list[tuple[Option, ...]] = []
    kept: dict[str, str] = {}
    decided: set[str] = set()
    with progress.stage("predicting options", len(sites)) as advance:
        for name, users in sites.items():
            check_finite(name, parameters[name].detach())
            if why := _reason(users, seen[name], chosen_by, embeddings):
                kept |= dict.fromkeys((site.name for site in users), why)
            else:
                least = CAREFUL if _minded(users, seen[name], last) else 2
                wide = [width for width in bits if width >= least] or [CAREFUL]
                groups.append(_options(parameters[name].detach(), users, seen[name], wide, method, dtype))
                decided.add(name)
            advance()
    return Table(tuple(groups), kept, dense_bytes(module, leave_out=decided))


def routers(network: Network, seen: Mapping[str, Seen]) -> dict[str, str]:
    """Sites that choose experts, with the stack they choose from.

    A stack is one tensor of n matrices, or a list of n modules of equal sites that saw unequal numbers of tokens; in a
    chain of layers, all see as many. Going outwards from it, the first part of the network that holds a plain matrix of
    n outputs, outside the stack, holds its router.
    """
    found: dict[str, str] = {}
    plain = [site for site in network.sites if site.role not in ("experts", "embedding", "conv")]
    for stack, count in _stacks(network, seen).items():
        place = stack
        while place := place.rpartition(".")[0]:
            inside = [s for s in plain if s.name.startswith(f"{place}.") and not s.name.startswith(f"{stack}.")]
            if near := [site.name for site in inside if site.shape[0] == count]:
                found |= dict.fromkeys(near, stack)
                break
    return found


def _stacks(network: Network, seen: Mapping[str, Seen]) -> dict[str, int]:
    """Path and size of every stack of experts."""
    found: dict[str, int] = {}
    lists: dict[str, dict[str, dict[str, tuple[tuple[int, int], int]]]] = {}  # path, number, site: shape and tokens
    for site in network.sites:
        name = network.stored_name(site.parameter)
        if site.role == "experts":
            found[site.name] = network.source.tensors[name].shape[0]
        words = site.name.split(".")
        for i, word in enumerate(words):
            if word.isdigit():
                own = lists.setdefault(".".join(words[:i]), {}).setdefault(word, {})
                own[".".join(words[i + 1 :])] = (site.shape, sum(seen[name].counts))
    for path, members in lists.items():
        shapes = [{inner: shape for inner, (shape, _) in own.items()} for own in members.values()]
        tokens = {tuple(count for _, count in own.values()) for own in members.values()}
        if len(members) > 1 and all(own == shapes[0] for own in shapes) and len(tokens) > 1:
            found[path] = len(members)
    return found


def _reason(users: Sequence[Site], seen: Seen, chosen_by: Mapping[str, str], embeddings: bool) -> str:
    """Why a tensor stays as it is; empty if it need not."""
    if any(site.role == "embedding" for site in users) and not embeddings:
        return "a table of embeddings; embeddings=True stores it at 8 bits"
    if stack := next((chosen_by[site.name] for site in users if site.name in chosen_by), ""):
        return f"it chooses between the experts of {stack}: a choice that flips is no small error"
    if not sum(seen.counts) and users[0].role != "embedding":
        return "nothing of the calibration data reached it"
    if not bool(seen.sensitivity.any()):
        return "the outputs do not depend on it, so nothing could be certified of it"
    return ""


def _minded(users: Sequence[Site], seen: Seen, last: int) -> bool:
    """Whether a weight is better kept at 8 bits or more."""
    return (
        seen.first or seen.place == last or seen.parts == users[0].shape[0]
        or any(site.role in ("embedding", "head") for site in users)
    )  # fmt: skip


def _options(
    parameter: Tensor, users: Sequence[Site], seen: Seen, bits: Sequence[int], method: str, dtype: str
) -> tuple[Option, ...]:  # fmt: skip
    main, names = users[0], tuple(site.name for site in users)
    dense = Dense(dtype=dtype)
    whole = dense.stored_bits(main.shape) // 8
    grids = [g for g in menu([main.shape[1]], dtype, bits) if packed_bytes(main.shape, g) < whole]
    if seen.statistics(main.name)[0][0] is None:
        method = RoundToNearest.name  # there is nothing to sweep by
    options = [Option(sites=names, step=Step((Stage("cast", dense),)), bytes=whole, damage=0.0)]
    damages = _damages(main.matrix(parameter), seen, grids, method) if grids else []
    for grid, damage in zip(grids, damages, strict=True):
        step, size = Step((Stage(method, grid),)), packed_bytes(main.shape, grid)
        options.append(Option(sites=names, step=step, bytes=size, damage=damage))
    return tuple(options)


def _damages(weight: Tensor, seen: Seen, grids: Sequence[Grid], method: str) -> list[float]:
    """½ Σ sensitivity · squared change, under each grid; from evenly spaced rows of each part.

    A method predicts squared changes of outputs, E gram Eᵀ. Spread over the inputs as rounding errors are, that is the
    trace of the gram matrix times the squared change of a weight, which the sensitivity of a row is for.
    """
    quantizer, total = predictor(method), torch.zeros(len(grids), dtype=torch.float64)
    parts = [statistics for statistics, _ in seen.statistics("prediction")]
    rows = len(weight) // len(parts)
    for part, statistics in enumerate(parts):
        mind = seen.sensitivity[part * rows : (part + 1) * rows].double()
        if not bool(mind.any()):
            continue
        chosen = torch.arange(0, rows, -(-rows * len(parts) // SAMPLE) if rows > 1 else 1)
        if not bool(mind[chosen].any()):
            chosen = torch.arange(rows)
        share = mind.sum() / mind[chosen].sum()
        spread = weight.shape[1] if statistics is None else float(statistics.require_gram().trace())
        changed = quantizer.predict(weight[part * rows + chosen].float(), statistics, grids).double()
        total += changed @ mind[chosen] * share / (2 * max(spread, 1e-30))
    return [float(damage) for damage in total]
