"""Why a search measures: on the default model a lower sum of layer errors, at equal bytes, gives a worse network."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pennyweight as pw
from pennyweight import catalogue
from pennyweight.flow.collect import Collected
from pennyweight.flow.options import predict_group
from pennyweight.flow.text import texts
from pennyweight.formats import Grid
from pennyweight.network.network import Network, Site
from pennyweight.network.running.run import materialised
from pennyweight.network.sources.gguf import embedded_default
from pennyweight.plan import Step

(STAGE,) = Step.parse("round_to_nearest(search=False) int2 g64 asym").stages
FIRST, LATER = range(6), range(18, 24)  # blocks that a plan gives two bits; all else stays as it is


@pytest.mark.slow
def test_a_lower_sum_of_layer_errors_gives_a_worse_network(tmp_path: Path) -> None:
    network = pw.load(embedded_default())
    words = texts(network, None, None, length=128, count=4, selection=4, seed=0)
    seen = pw.collect(network, words.calibration, work=tmp_path)
    sums = [sum(damage(network, group, seen) for group in groups(network, blocks)) for blocks in (FIRST, LATER)]
    with materialised(network, exact=False, dtype=torch.float32) as model, torch.no_grad():
        before = probabilities(model, words.selection.ids)
        kls = [loss(model, network, blocks, words.selection.ids, before) for blocks in (FIRST, LATER)]
    sizes = [sum(site.elements for group in groups(network, blocks) for site in group) for blocks in (FIRST, LATER)]
    assert sizes[0] == sizes[1]
    assert 1.15 * sums[0] < sums[1]  # what a sum of layer errors prefers
    assert kls[0] > 1.5 * kls[1]  # what is so


def groups(network: Network, blocks: range) -> list[tuple[Site, ...]]:
    return [group for group in network.groups() if group[0].block in blocks]


def damage(network: Network, group: tuple[Site, ...], seen: Collected) -> float:
    """Predicted KL, nats a token: exact squared changes of outputs times the Fisher information of each."""
    block = group[0].block
    assert block is not None
    statistics = seen.block(block)
    ((_, found),) = predict_group(network, group, [STAGE.format], statistics, (Grid,), STAGE.method, "kronecker")
    return found


def loss(model: nn.Module, network: Network, blocks: range, ids: Tensor, before: Tensor) -> float:
    """KL in nats a token with these blocks rounded; weights are put back."""
    method, parameters = catalogue.find(STAGE.method, "quantization"), dict(model.named_parameters())
    originals = {}
    for group in groups(network, blocks):
        for site in group:
            weight = parameters[site.parameter].data
            rounded = method.compress(weight, None, STAGE.format, generator=torch.Generator())
            originals[site.parameter], parameters[site.parameter].data = weight, rounded.dequantize()
    after = probabilities(model, ids)
    for name, weight in originals.items():
        parameters[name].data = weight
    return float((before.exp() * (before - after)).sum(-1).mean())


def probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    return found
