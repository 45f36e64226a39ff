"""Gates of experts: found whichever way experts are multiplied, and weighed into the statistics of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pennyweight as pw
from pennyweight.errors import InvalidMethod
from pennyweight.flow.modules.build import compress
from pennyweight.flow.modules.look import Seen, look
from pennyweight.flow.progress import QUIET
from pennyweight.network.running.affinity import weighing
from pennyweight.plan import Step

EXPERTS, SIZE, TOKENS = 4, 32, 48


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(number)) / parameter.shape[-1] ** 0.5)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=96, hidden_size=SIZE, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=EXPERTS, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return random(MixtralForCausalLM(config))


def ids(seed: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 96, (2, TOKENS // 2), generator=generator(seed))}


def grams(module: nn.Module, names: list[str], batch: Any, power: float) -> dict[str, Seen]:
    found = {name: Seen(torch.zeros(1)) for name in names}

    def see(name: str, rows: Tensor, part: int | None, gates: Tensor | None) -> None:
        found[name].add(rows, part, EXPERTS, None if gates is None else gates**power)

    with torch.no_grad(), weighing({name: module.get_parameter(name) for name in names}, see):
        module(**batch)
    return found


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_every_way_to_multiply_experts_gives_the_weighed_gram_by_hand(mixtral: Any, way: str) -> None:
    block = mixtral.model.layers[1].mlp
    names = ["model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"]
    given: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _module, args: given.append(args[0].flatten(0, 1)))
    mixtral.set_experts_implementation(way)
    try:
        found = grams(mixtral, names, ids(1), 1.0)
    finally:
        mixtral.set_experts_implementation("grouped_mm")
        hook.remove()
    (x,) = given
    with torch.no_grad():
        _, gates, chosen = block.gate(x)
    for expert in range(EXPERTS):
        token, place = torch.where(chosen == expert)
        rows, share = x[token], gates[token, place]
        up, down = (found[name] for name in names)
        assert up.counts[expert] == len(token)
        assert up.shares[expert] == pytest.approx(float(share.sum()), rel=1e-5)
        torch.testing.assert_close(up.grams[expert], (rows * share[:, None]).T @ rows)  # type: ignore[index]
        a, b = (rows @ block.experts.gate_up_proj[expert].T).chunk(2, 1)
        inner = nn.functional.silu(a) * b
        torch.testing.assert_close(  # type: ignore[misc]
            down.grams[expert],
            (inner * share[:, None]).T @ inner,
            rtol=1e-3,
            atol=1e-4,  # type: ignore[index]
        )
    total = sum(found[names[0]].shares)
    assert total == pytest.approx(TOKENS, rel=1e-5), "gates of a token sum to one"


class Listed(nn.Module):
    """Experts as modules of their own, a shared one, and a norm that multiplies by one number a row."""

    def __init__(self, even: bool) -> None:
        super().__init__()
        self.even = even
        self.before, self.after = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 8)
        self.router = nn.Linear(SIZE, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(SIZE, 48), nn.GELU(), nn.Linear(48, SIZE)) for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        gates = self.router(x).softmax(-1)
        gates, chosen = gates.topk(2, dim=-1)
        gates = torch.ones_like(gates) if self.even else gates
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            y = expert(x[token])
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
            out = out.index_add(0, token, gates[token, place, None] * y)
        return self.after(out)


def outputs(module: nn.Module, batch: Any) -> Tensor:
    found: Tensor = module(**batch)
    return found


def batches(count: int) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(200, SIZE, generator=generator(i))} for i in range(count)]


def seen_of(module: nn.Module, power: float) -> dict[str, Seen]:
    data = batches(3)
    return look(module, pw.network_of(module, data[0]), data, outputs, seed=0, progress=QUIET, affinity=power)


def test_experts_that_are_modules_are_weighed_too_and_norms_are_no_gates() -> None:
    module = random(Listed(even=False))
    plain, weighed = seen_of(module, 0.0), seen_of(module, 1.0)
    for name, seen in weighed.items():
        assert seen.counts == plain[name].counts
        assert seen.place == plain[name].place
        if name.startswith("experts"):
            assert 0.2 < seen.shares[0] / seen.counts[0] < 0.8, "gates, and no 1/rms"
        else:
            assert seen.shares == plain[name].shares
            assert torch.equal(seen.grams, plain[name].grams)  # type: ignore[arg-type]
    both = [f"experts.0.{layer}.weight" for layer in (0, 2)]
    assert weighed[both[0]].shares == pytest.approx(weighed[both[1]].shares, rel=1e-6)
    squared = seen_of(module, 2.0)
    assert squared[both[0]].shares[0] < weighed[both[0]].shares[0]


def test_gates_of_one_change_nothing() -> None:
    module = random(Listed(even=True))
    plain, weighed = seen_of(module, 0.0), seen_of(module, 1.0)
    network = pw.network_of(module, batches(1)[0])
    site = network.by_name["experts.1.2"]
    name, weight = "experts.1.2.weight", module.get_parameter("experts.1.2.weight")
    results = [compress(site, weight, seen[name], Step.parse("gptq int3 row sym"), 0)[0] for seen in (plain, weighed)]
    assert torch.equal(results[0].dequantize(), results[1].dequantize())


def test_a_token_with_a_gate_of_zero_is_as_if_it_were_not_there() -> None:
    rows = torch.randn(1, 40, 16, generator=generator(1))
    share = (torch.arange(40) < 25).float()[None]
    some, all_of_them = Seen(torch.ones(8)), Seen(torch.ones(8))
    some.add(rows[:, :25], None, 1)
    all_of_them.add(rows, None, 1, share)
    ((a, _),), ((b, _),) = some.statistics("x"), all_of_them.statistics("x")
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a.require_gram(), b.require_gram())


def test_a_negative_power_is_refused() -> None:
    module = random(Listed(even=False))
    with pytest.raises(InvalidMethod, match="affinity=-1"):
        pw.compress_module(
            module, calibration=batches(2), held_out=batches(12)[2:], outputs=outputs,
            budget=pw.Budget.lose("cosine 0.05"), affinity=-1,
        )  # fmt: skip


def test_compressed_with_gates_and_certified() -> None:
    module = random(Listed(even=False))
    result = pw.compress_module(
        module, calibration=batches(2), held_out=batches(12)[2:], outputs=outputs,
        budget=pw.Budget.lose("cosine 0.05"), affinity=1,
    )  # fmt: skip
    assert result.holds
    assert result.run["affinity"] == 1


def test_the_output_of_a_mixture_gains_where_gates_go_with_directions() -> None:
    """Tokens of a high gate lie in other directions than those of a low one."""
    weight = torch.randn(64, SIZE, generator=generator(1))
    site = pw.network_of(nn.Linear(SIZE, 64, bias=False)).sites[0]
    sizes = torch.logspace(0, -1.5, SIZE)
    rows = torch.randn(4000, SIZE, generator=generator(2)) * torch.where(torch.arange(4000)[:, None] < 2000, sizes,
                                                                         sizes.flip(0))  # fmt: skip
    turned = rows @ torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator(3))).Q
    gates = torch.where(torch.arange(4000) < 2000, 0.9, 0.1)
    errors = []
    for power in (0.0, 1.0, 2.0):
        seen = Seen(torch.ones(64))
        seen.add(turned[None], None, 1, gates[None] ** power)
        result, _ = compress(site, weight, seen, Step.parse("gptq int2 g32 asym"), 0)
        change = turned @ (result.dequantize() - weight).T
        errors.append(float((gates[:, None] * change).square().sum()))
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < errors[1]
