"""Memory in the engine: what is kept of tokens, what lies beside the weights, and plans that are held to a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pennyweight.budget import Budget
from pennyweight.errors import InfeasibleBudget, InvalidBudget, InvalidModel
from pennyweight.export.engines import ENGINES, Engine, find
from pennyweight.export.memory import Memory
from pennyweight.flow.job import planner_of
from pennyweight.flow.make_plan import Planner
from pennyweight.flow.memory import USUAL, context_of, held, with_memory
from pennyweight.flow.options import Table, outline
from pennyweight.flow.settings import Settings
from pennyweight.network.finding import cached as room
from pennyweight.network.finding.cached import cached
from pennyweight.network.network import Network
from pennyweight.plan import Option

NetworkOf = Callable[[str], Network]
LOSE = Budget.lose("2%")


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "phi3", "gpt2"])
@pytest.mark.parametrize("context", [3, 40])
def test_what_is_kept_of_tokens(
    family: str, context: int, network_of: NetworkOf, model_of: Callable[[str], nn.Module]
) -> None:
    """Counted without numbers, and of a real cache; a sliding window of 16 keeps 15."""
    with torch.no_grad():
        found = model_of(family)(input_ids=torch.zeros(1, context, dtype=torch.long), use_cache=True).past_key_values
    real: list[Tensor] = [tensor for layer in found.layers for tensor in (layer.keys, layer.values)]
    assert cached(network_of(family), context) == sum(tensor.numel() for tensor in real)


def test_what_cannot_be_counted(network_of: NetworkOf, monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Module):
        def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
            assert use_cache
            return input_ids[0, : int(input_ids.sum())]

    monkeypatch.setattr(room, "skeleton", lambda _: Looks())
    with pytest.raises(InvalidModel, match="cannot be counted"):
        cached(network_of("llama"), 4)


def test_beside_the_weights(network_of: NetworkOf) -> None:
    """64 wide, gate and up 128 each, 256 tokens in the vocabulary; 1000 numbers are cached."""
    network = network_of("llama")
    activations = 4 * 4 * 64 + 2 * 2 * 256
    usual = Memory(weights="stored")
    assert usual.working(network, "float16", 100, 1000) == 2 * 1000 + 100 * activations + 100 * 100 + 4 * 256
    parts = Memory(weights="stored", cache=4, activations=4, prompt=32, logits=None)
    wide = 4 * 4 * 64 + 2 * 4 * 256
    assert parts.working(network, "float16", 100, 1000) == 4 * 1000 + 32 * wide + 32 * 100 + 32 * 4 * 256
    assert parts.working(network, "float16", 10, 0) == 10 * wide + 10 * 10 + 10 * 4 * 256
    unpacked = Memory(weights="dense", unpacking=1000.0)
    assert unpacked.working(network, "float16", 1, 0) == 1000 * 64 * 128, "it is over when text is read"


def priced(network: Network, engine: str) -> Table:
    """A table in which fewer bytes cost more."""

    def damage(option: Option, dense: int) -> float:
        return 1e-3 * (dense / option.bytes - 1)

    table = outline(network, find(engine), dtype="float16")
    groups = tuple(tuple(replace(o, damage=damage(o, row[0].bytes)) for o in row) for row in table.groups)
    return replace(table, groups=groups)


@pytest.mark.parametrize("engine", [engine.name for engine in ENGINES])
def test_what_an_option_takes(engine: str, network_of: NetworkOf) -> None:
    network = network_of("llama")
    table, limit = held(priced(network, engine), network, find(engine), "float16", at_most=1e9, context=64)
    for row in table.groups:
        for option in row:
            assert option.memory == (row[0].bytes if engine == "transformers" else option.bytes)
    beside = find(engine).memory.working(network, "float16", 64, cached(network, 64))
    assert limit.at_most == 1e9 - beside - table.fixed_bytes


PACKED = replace(find("transformers"), name="packed", memory=find("llama.cpp").memory)


def planner_for(network: Network, megabytes: float, *, engine: Engine = PACKED, context: int = 64) -> Planner:
    table = priced(network, "transformers")
    table, limit = held(table, network, engine, "float16", at_most=1e6 * megabytes, context=context)
    beside = engine.files.beside(network, "float16")
    return Planner(network=network, table=table, engine=engine, dtype="float16", beside=beside, always=(limit,))


def test_plans_keep_within(network_of: NetworkOf) -> None:
    """More memory, more bytes and less damage; beside a limit on the size the tighter one binds."""
    network = network_of("llama")
    beside = PACKED.memory.working(network, "float16", 64, cached(network, 64))
    sizes, damages = [], []
    for megabytes in (0.38, 0.4, 0.42):
        planner = planner_for(network, megabytes)
        plan = planner.for_budget(Budget.memory(f"{megabytes}MB"))
        assert 1e6 * megabytes - 6000 < plan.bytes + beside <= 1e6 * megabytes
        sizes.append(plan.bytes)
        damages.append(plan.damage)
        tighter = planner.size([]) - planner.table.fixed_bytes + plan.bytes - 4000
        assert planner.for_budget(Budget.fit(f"{tighter}B")).bytes <= plan.bytes - 4000
        assert planner.for_budget(Budget.fit("9MB")).bytes == plan.bytes
    assert sizes == sorted(set(sizes))
    assert damages == sorted(set(damages), reverse=True)


def test_what_contradicts(network_of: NetworkOf) -> None:
    network = network_of("llama")
    with pytest.raises(InfeasibleBudget, match=r"runs in 0\.100 MB") as refused:
        planner_for(network, 0.1)
    assert "for a context of 64 tokens" in refused.value.expected
    least = float(refused.value.mend.split()[1].removesuffix("MB,"))
    planner_for(network, least)
    with pytest.raises(InfeasibleBudget, match="runs in"):
        planner_for(network, least - 0.1)
    with pytest.raises(InfeasibleBudget, match="no plan of this model for transformers") as refused:
        planner_for(network, 0.2, engine=find("transformers"))
    assert "no plan makes them smaller in memory" in refused.value.expected
    assert "--for llama.cpp" in refused.value.mend
    with pytest.raises(InfeasibleBudget) as refused:
        planner_for(network, 0.4).within_damage(1e-4)
    assert "damage at or below" in refused.value.happened
    assert "memory at or below" in refused.value.happened
    with pytest.raises(InvalidBudget, match="a context of 257 tokens, and the model reads 256"):
        planner_for(network, 9.0, context=257)


def test_the_settings_of_a_run_hold_beside_its_budget(network_of: NetworkOf) -> None:
    network = network_of("llama")
    settings = Settings(dtype="float16", memory=2e6, context=64)
    planner = planner_of(network, settings, outline(network, find("transformers"), dtype="float16"), model=network)
    (limit,) = planner.always
    assert planner.limit(Budget.memory("2MB")) == limit
    assert planner.for_budget(Budget.fit("300KB")).bytes < 300_000
    with pytest.raises(InfeasibleBudget, match="runs in"):
        planner_of(network, replace(settings, memory=1e5), planner.table, model=network)


def test_contexts(network_of: NetworkOf) -> None:
    network = network_of("llama")
    assert (context_of(network, 0), context_of(network, 7)) == (256, 7)
    with pytest.raises(InvalidBudget, match="the model reads 256"):
        context_of(network, 257)
    more = replace(network, source=SimpleNamespace(config={"max_position_embeddings": 100_000}))  # type: ignore[arg-type]
    assert context_of(more, 0) == USUAL
    unknown = replace(network, source=SimpleNamespace(config={}))  # type: ignore[arg-type]
    assert (context_of(unknown, 0), context_of(unknown, 10**6)) == (USUAL, 10**6)


def test_reading_and_sorting() -> None:
    memory = Budget.memory("1.5 MiB")
    assert (memory.at_most, memory.unit, memory.metric, memory.is_claim) == (1_572_864, "bytes", "memory", False)
    assert memory.label == "1.572864 MB in memory"
    for text in ("", "3x", "-1MB", "0", "MB", "nan"):
        with pytest.raises(InvalidBudget, match="as a size") as refused:
            Budget.memory(text)
        assert refused.value.site == "--memory"
    with pytest.raises(InvalidBudget, match="not a loss of memory"):
        Budget.lose("memory 3")
    assert with_memory([LOSE, memory], Settings()) == ([LOSE], Settings(memory=1_572_864))
    assert with_memory([memory], Settings()) == ([memory], Settings(memory=1_572_864))
    assert with_memory([memory, memory], Settings(memory=1_572_864)) == ([memory], Settings(memory=1_572_864))
    assert with_memory([LOSE], Settings()) == ([LOSE], Settings())
    with pytest.raises(InvalidBudget, match=r"two limits on the memory: 1\.57286 MB and 2 MB"):
        with_memory([LOSE, memory], Settings(memory=2e6))
