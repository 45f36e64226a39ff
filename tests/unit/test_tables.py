"""What a table outside the blocks costs: measured, against the whole network run the plain way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from pennyweight import formats
from pennyweight.errors import InvalidPlan
from pennyweight.flow.make_plan import check_plan
from pennyweight.flow.tables import prices
from pennyweight.network.network import Network
from pennyweight.network.running.run import materialised
from pennyweight.plan import Plan, Step

NetworkOf = Callable[[str], Network]


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, model(input_ids=ids, use_cache=False).logits.double())


@pytest.mark.parametrize(("name", "site"), [("llama_tied", "model.embed_tokens"), ("llama", "lm_head")])
def test_prices_are_those_of_the_whole_network(name: str, site: str, network_of: NetworkOf) -> None:
    network = network_of(name)
    ids = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    found = network.by_name[site]
    stored = network.stored_name(found.parameter)
    chosen = [formats.parse(label) for label in ("q8_0", "q4_0")]
    measured = prices(network, found, chosen, ids)
    with materialised(network, exact=False, dtype=torch.float32) as model:
        before = logits(model, ids)
        parameter = dict(model.named_parameters())[stored]
        weight = parameter.detach().clone()
        for format, price in zip(chosen, measured, strict=True):
            parameter.data = format.decode(format.store(weight).tensors, tuple(weight.shape))
            after = logits(model, ids)
            p, q = before.log_softmax(-1), after.log_softmax(-1)
            assert price == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3, abs=1e-9)
    assert 0 < measured[0] < measured[1] / 50, "eight bits lose far less than four"


def plan_for(network: Network, steps: dict[str, str]) -> Plan:
    return Plan(
        steps={name: Step.parse(label) for name, label in steps.items()}, kept={}, engine="llama.cpp", dtype="float16",
        seed=0, bytes=0, damage=0.0, model=network.source.fingerprint,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"model.embed_tokens": "round_to_nearest q8_0"}, "are one tensor"),
        ({"model.embed_tokens": "gptq q8_0", "lm_head": "gptq q8_0"}, "gptq needs the gram"),
        ({"model.embed_tokens": "round_to_nearest q8_0", "lm_head": "round_to_nearest q8_0"}, ""),
    ],
)
def test_plans_of_a_shared_table(
    steps: dict[str, str], message: str, network_of: NetworkOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of("llama_tied")
    files = SimpleNamespace(check=lambda *_: None)  # the shared models have a tokenizer that llama.cpp has no name for
    monkeypatch.setattr("pennyweight.export.engines.engine.files_of", lambda _: files)
    if not message:
        assert check_plan(plan_for(network, steps), network).name == "llama.cpp"
        return
    with pytest.raises(InvalidPlan, match=message):
        check_plan(plan_for(network, steps), network)
