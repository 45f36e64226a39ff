"""A limit on the memory an engine takes for a model: what every option takes of it, and what is left for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pennyweight.budget import Budget
from pennyweight.errors import InfeasibleBudget, InvalidBudget
from pennyweight.export.engines import Engine
from pennyweight.flow.options import Table
from pennyweight.flow.settings import Settings
from pennyweight.network.finding.cached import cached
from pennyweight.network.network import Network
from pennyweight.problem import Limit

USUAL = 2048  # tokens of context


def held(
    table: Table, network: Network, engine: Engine, dtype: str, *, at_most: float, context: int
) -> tuple[Table, Limit]:  # fmt: skip
    """The table with the memory of every option, and the limit they must keep together.

    Args:
        table: of options.
        network: whose weights they are.
        engine: that will run it.
        dtype: of tensors that stay dense.
        at_most: bytes of weights, keys and values, and activations.
        context: tokens of prompt and answer; 0 for what the model reads, and 2048 where that is more.

    Raises:
        InfeasibleBudget: no plan takes so little; it says what takes how much.
        InvalidBudget: the model cannot read so many tokens.
        InvalidModel: what it keeps of tokens cannot be counted.
    """
    dense, context = engine.memory.weights == "dense", context_of(network, context)
    # The first option of every group is the dense one.
    groups = tuple(tuple(replace(o, memory=row[0].bytes if dense else o.bytes) for o in row) for row in table.groups)
    working = engine.memory.working(network, dtype, context, cached(network, context))
    least = sum(min(option.memory for option in row) for row in groups) + table.fixed_bytes
    if least + working > at_most:
        total = least + working
        kept = f" ({engine.name} unpacks them, so that no plan makes them smaller in memory)" if dense else ""
        other = ", or an engine that keeps weights packed, such as --for llama.cpp" if dense else ""
        raise InfeasibleBudget(
            f"no plan of this model for {engine.name} runs in {at_most / 1e6:.3f} MB",
            expected=f"at least {total / 1e6:.1f} MB: {least / 1e6:.1f} MB of weights{kept}, and "
            f"{working / 1e6:.1f} MB beside them for a context of {context} tokens",
            mend=f"--memory {-(-total // 100_000) / 10:.1f}MB, or a shorter --context{other}", site="--memory",
        )  # fmt: skip
    return replace(table, groups=groups), Limit("memory", at_most - working - table.fixed_bytes)


def context_of(network: Network, asked: int) -> int:
    """Tokens that memory must do for.

    Raises:
        InvalidBudget: the model cannot read so many.
    """
    most = network.source.config.get("max_position_embeddings")
    if isinstance(most, int) and asked > most:
        raise InvalidBudget(
            f"a context of {asked} tokens, and the model reads {most}", expected=f"at most {most}",
            mend=f"--context {most}", site="--context",
        )  # fmt: skip
    return asked or min(USUAL, most if isinstance(most, int) else USUAL)


def with_memory(budgets: Sequence[Budget], settings: Settings) -> tuple[list[Budget], Settings]:
    """A budget of memory among others becomes one of the settings, which every plan keeps; alone it stays one as well.

    Raises:
        InvalidBudget: two of them that differ.
    """
    found = {budget.at_most for budget in budgets if budget.metric == "memory"}
    found |= {settings.memory} if settings.memory else set()
    if len(found) > 1:
        raise InvalidBudget(
            f"two limits on the memory: {' and '.join(f'{size / 1e6:g} MB' for size in sorted(found))}",
            expected="one", mend="leave one out", site="--memory",
        )  # fmt: skip
    others = [budget for budget in budgets if budget.metric != "memory"]
    return others or list(budgets)[:1], replace(settings, memory=max(found, default=0.0))
