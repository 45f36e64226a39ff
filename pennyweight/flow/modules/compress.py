"""Any module in memory: compressed, measured on outputs that the user names, and certified.

    result = compress_module(
        module, calibration=batches, held_out=others, budget=Budget.lose("cosine 0.01"),
        outputs=lambda module, batch: module(**batch).last_hidden_state.mean(1),
    )
    save_compressed(result, "small/")
    module = load_compressed(module, "small/")

Data flow one way: sites (network_of) and statistics (look), options and their damage (table), a ladder of plans carried
out and written (build, store), and the claim on items that nothing before it looked at (claim).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pennyweight.budget import Budget, Opening
from pennyweight.errors import InvalidMethod, InvalidModel
from pennyweight.export.contracts import BITS
from pennyweight.flow import artifact
from pennyweight.flow.certifying.claims import usual_engine
from pennyweight.flow.certifying.compare import fingerprint_of
from pennyweight.flow.certifying.rules import Rules
from pennyweight.flow.delivery import check_free
from pennyweight.flow.make_plan import Planner, check_dtype
from pennyweight.flow.modules import store
from pennyweight.flow.modules.build import IN_MEMORY, Builder
from pennyweight.flow.modules.claim import asked_of, climb
from pennyweight.flow.modules.held_out import Batch, Outputs, Read, check_apart, populations
from pennyweight.flow.modules.look import Seen, look
from pennyweight.flow.modules.result import CompressedModule, save_compressed
from pennyweight.flow.modules.table import tabulate
from pennyweight.flow.options import Table, predictor
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.versions import versions
from pennyweight.network.finding.trace import network_of
from pennyweight.network.network import Network


def compress_module(
    module: nn.Module,
    *,
    calibration: Sequence[Batch],
    held_out: Sequence[Batch],
    outputs: Outputs,
    budget: Budget | Sequence[Budget],
    metrics: Sequence[Any] = (),
    targets: Sequence[Any] | None = None,
    documents: Sequence[int] | None = None,
    out: str | Path | None = None,
    bits: Sequence[int] = BITS,
    method: str = "gptq",
    embeddings: bool = False,
    affinity: float = 0.0,
    dtype: str = "float16",
    allocation: str = "integer_program",
    scope: str = "corpus",
    bound: str | None = None,
    opening: Opening | None = None,
    salt: str = "",
    seed: int = 0,
    progress: Progress = QUIET,
) -> CompressedModule:
    """Compress a module within limits on what happens to its outputs, and certify them.

    No ledger of openings is kept: `opening` says how often the held-out items carried claims before.

    Args:
        module: any, on the CPU; it is not changed, and run in evaluation mode.
        calibration: batches for methods and predictions: keyword arguments of its forward.
        held_out: batches that no method sees. A share of their items plans the search, the others carry the claim.
        outputs: called with a module and a batch, returns what the claim is about, one entry an item of the batch.
            Floats that can be differentiated tell best where bits matter.
        budget: limits on metrics that read outputs, such as `Budget.lose("cosine 0.01")`; all must hold.
        metrics: objects that a budget means by their name, such as `PythonFunction(function=f, upper=1.0)` by
            `Budget(metric="function", at_most=0.01, unit="absolute")`.
        targets: what is right for each held-out item, over all batches in their order, if the metric asks for it.
        documents: cluster of each held-out item; by default each stands for itself.
        out: directory to save to; None to keep all in memory.
        bits: code widths to choose from.
        method: the quantizer, by name.
        embeddings: whether tables of embeddings may be stored at 8 bits; they stay dense otherwise.
        affinity: power of its gate by which a token counts in the statistics of an expert: 0 for all alike, 1 as
            MoEQuant does, 2 as squared errors of what the experts add up to.
        dtype: of scales and of everything that stays dense: float16 or bfloat16.
        allocation: the allocator, by name.
        scope: `corpus` (these items), `source` (what they were drawn from, one of each document) or `asymptotic`.
        bound: by name; None for the usual one of the scope.
        opening: which opening of the held-out items this is; the first by default.
        salt: declared part of the order's seed.
        seed: of everything random.
        progress: told about every stage.

    Raises:
        InvalidMethod: a negative affinity.
        InvalidModel: nothing in it can be compressed, or its code cannot be followed on the first batch.
        InvalidMeasurement: data that overlap, too few items, or outputs that are not finite.
        InvalidBudget: a limit that means nothing for outputs.
        InfeasibleBudget: the items cannot carry the claim, in the scopes that need more.
    """
    budgets = [budget] if isinstance(budget, Budget) else list(budget)
    engine = usual_engine(scope, bound)
    asked = asked_of(budgets, metrics, engine)
    check_dtype(dtype, IN_MEMORY)
    predictor(method)  # refused here, not after the pass over the data
    if not affinity >= 0:
        raise InvalidMethod(f"affinity={affinity!r}", expected="0 or more", mend="affinity=1", site="affinity")
    check_apart(calibration, held_out)
    if out is not None:
        check_free(Path(out), Path(f"{out}.run"))
    reference = copy.deepcopy(module).eval().requires_grad_(False)
    network = network_of(reference, calibration[0])
    if not network.sites:
        raise InvalidModel(
            f"{type(module).__name__} multiplies by no weight on the first calibration batch",
            expected="a linear layer, a convolution, or another product with a stored tensor",
            mend="pass the module that holds the weights", site="module",
        )  # fmt: skip
    with progress.stage("reading the reference", len(held_out)) as advance:
        before = Read(reference, outputs, held_out, advance=advance)
    pairs = populations(len(before), held_out, targets, documents, asked, scope)
    seen = look(reference, network, calibration, outputs, seed=seed, progress=progress, affinity=affinity)
    table = tabulate(
        reference, network, seen, bits=bits, method=method, embeddings=embeddings, dtype=dtype, progress=progress
    )
    _check_table(table)
    alpha = 1 - budgets[0].confidence
    opening = opening or Opening(number=1, alpha=alpha, spent=alpha)
    whole, looked_at = fingerprint_of(held_out, targets), fingerprint_of(calibration)
    rules = Rules(
        engine=engine, scope=scope, salt=f"{seed} {salt}".rstrip(), opening=opening,
        numbers={one.on: opening.number for one in asked if opening.number > 1},
        ledgers={one.on: whole for one in asked},
    )  # fmt: skip
    run: dict[str, Any] = {
        "model": network.source.fingerprint, "code": artifact.code_hash(), "versions": versions(), "seed": seed,
        "texts": {"calibration": looked_at, "held_out": whole}, "method": method, "affinity": affinity,
        "bits": list(bits), "scope": scope, "dtype": dtype, "kind": type(module).__name__,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        builder = Builder(
            reference, network, seen,
            Planner(network=network, table=table, engine=IN_MEMORY, dtype=dtype, seed=seed, allocation=allocation),
            asked, [planning for planning, _ in pairs], before, held_out, outputs, Path(place), progress,
        )  # fmt: skip
        fingerprints = {"model": run["model"], "code": run["code"], "calibration": looked_at}
        best, judged, rows = climb(builder.ladder(), builder, [claimed for _, claimed in pairs], rules, fingerprints)
        stored = store.read(best.directory)
    result = CompressedModule(
        module=store.unpack(reference, stored), holds=judged.certificate.holds, certificate=judged.certificate,
        bytes=stored.bytes, bytes_16_bit=store.dense_bytes(reference), plan=best.plan, ledger=best.ledger,
        coverage=_coverage(network, seen), rungs=tuple(rows), stored=stored, judged=judged, rules=rules, asked=asked,
        run=run,
    )  # fmt: skip
    if out is not None:
        save_compressed(result, out)
    return result


def _check_table(table: Table) -> None:
    if not any(len(options) > 1 for options in table.groups):
        raise InvalidModel(
            "nothing in this module can be compressed: " + "; ".join(sorted({*table.kept.values()})),
            expected="a weight that the outputs depend on and that is large enough for codes and scales to be smaller",
            mend="pass embeddings=True, other bits, or outputs that depend on more of it", site="module",
        )  # fmt: skip


def _coverage(network: Network, seen: Mapping[str, Seen]) -> dict[str, tuple[int, ...]]:
    return {
        site.name: tuple(seen[network.stored_name(site.parameter)].counts)
        for site in network.sites if site.role == "experts"
    }  # fmt: skip
