"""Rewrites that change a network's structure: equal in float64, and what their papers say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import BY_NAME, perturb
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pennyweight.errors import InvalidFormat, InvalidTransform, InvalidWeights
from pennyweight.flow.observe import observe
from pennyweight.flow.rewrite import rewrite
from pennyweight.methods.rewrites.centre_writers import CentreWriters, residuals
from pennyweight.methods.rewrites.dead_channels import RemoveDeadChannels
from pennyweight.methods.rewrites.fold_batch_norm import FoldBatchNorm
from pennyweight.methods.rewrites.layer_to_rms import (
    LayerToRMS,
    RMSNormWithBias,
    compressed_reader,
    compressed_writer,
    crms_norm,
)
from pennyweight.methods.rewrites.merge_duplicates import MergeDuplicates
from pennyweight.methods.rewrites.permute_channels import PermuteChannels
from pennyweight.methods.rewrites.split_quant import PARTS, Split, SplitQuant
from pennyweight.methods.rewrites.widely_linear import WidelyLinear, WidelyLinearLayer
from pennyweight.network.changing.rebuild import Made, Rebuilt
from pennyweight.network.finding.trace import load_network, network_of, skeleton
from pennyweight.network.network import Network
from pennyweight.network.running.run import change, materialised, outputs
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.source import Source
from pennyweight.numerics.clusters import line_means, split_parts
from pennyweight.numerics.fairy2i import phase_stages, round_phases, to_real, to_widely_linear
from pennyweight.numerics.random import stream


def normal(*shape: int, name: str = "", dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=stream(0, "structural", name), dtype=dtype)


def network(family: str, model: nn.Module | None = None) -> Network:
    kind = BY_NAME[family]
    model = model or kind.model()
    return network_of(model, kind.inputs(model))


def saved(model: Any, directory: Path) -> Network:
    model.save_pretrained(directory)
    return load_network(open_source(directory))


class Mixed(nn.Module):
    """Batch norms that can be folded (a, b, c) and some that cannot (d: in front; e: its layer is read twice)."""

    def __init__(self) -> None:
        super().__init__()
        self.d, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.a, self.up = nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2, bias=False)
        self.b, self.twice, self.e = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.linear, self.c, self.head = (
            nn.Linear(8, 12, bias=False),
            nn.BatchNorm1d(12, affine=False),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(self.conv(torch.relu(self.d(x)))))
        x = self.twice(torch.relu(self.b(self.up(x))))
        x = (torch.sigmoid(x) + self.e(x)).mean((2, 3))
        return self.head(torch.relu(self.c(self.linear(x))))


class Gated(nn.Module):
    """Twice a gate beside a branch, without norms."""

    def __init__(self, between: Any = F.silu) -> None:
        super().__init__()
        self.between = between
        self.gate, self.up, self.down = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fc1(self.down(F.silu(self.gate(x)) * self.up(x)))))


def gated(between: Any = F.silu) -> Gated:
    return perturb(Gated(between).eval().requires_grad_(False))


def inputs() -> dict[str, Tensor]:
    return {"x": normal(7, 6, name="inputs", dtype=torch.float32)}


# Batch norms


def test_batch_norms_that_a_layer_alone_feeds_are_folded() -> None:
    model = perturb(Mixed().eval().requires_grad_(False))
    before = network_of(model, {"x": normal(2, 4, 6, 6, dtype=torch.float32)})
    after, steps = rewrite(before, [FoldBatchNorm()])
    assert steps[0].change < 1e-14
    kinds = {name: type(module) for name, module in skeleton(after.source).named_modules()}
    assert [kinds[n] for n in "abc"] == [nn.Identity] * 3
    assert kinds["d"] is kinds["e"] is nn.BatchNorm2d
    assert after.source.tensors["up.bias"].shape == (8,)
    assert not any(name.startswith(("a.", "b.", "c.")) for name in after.source.tensors)
    assert FoldBatchNorm().rewrite(after) is after, "twice changes nothing"


def test_a_residual_network_of_convolutions_is_folded_and_can_then_lose_channels() -> None:
    model = BY_NAME["resnet-torch"].model()
    block = model.layer2[0]
    block.bn1.weight[3], block.bn1.bias[3] = 0.0, 0.0
    after, steps = rewrite(network("resnet-torch", model), [FoldBatchNorm(), RemoveDeadChannels()])
    assert all(step.change < 1e-14 for step in steps)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in skeleton(after.source).modules())
    assert after.source.tensors["layer2.0.conv1.weight"].shape[0] == 15
    assert after.source.tensors["layer2.0.conv2.weight"].shape[1] == 15


# Means and norms


def block_means(network: Network, family: str) -> list[float]:
    """The largest mean over channels of what every block returns, beside its size."""
    found = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        found.append(float(hidden.mean(-1).abs().max() / hidden.abs().max()))

    with materialised(network) as model, torch.no_grad():
        for block in network.blocks:
            model.get_submodule(block.name).register_forward_hook(hook)
        given = network.inputs or BY_NAME[family].inputs(model)
        model(**{k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()})
    return found


@pytest.mark.parametrize("family", ["gpt2", "vit"])
def test_centred_writers_leave_a_stream_without_mean_and_twice_is_once(family: str) -> None:
    before, _ = rewrite(network(family), ["untie"])
    after, steps = rewrite(before, [CentreWriters()])
    assert steps[0].change < 1e-14
    assert min(block_means(before, family)) > 1e-3
    assert max(block_means(after, family)) < 1e-14
    again = CentreWriters().rewrite(after)
    for name in after.source.tensors:
        assert torch.allclose(again.source.exact(name), after.source.exact(name), rtol=0, atol=1e-15)
    assert again.source.fingerprint != after.source.fingerprint != before.source.fingerprint


def test_only_streams_that_norms_alone_read_and_no_norm_writes_are_centred() -> None:
    assert CentreWriters().rewrite(llama := network("llama")) is llama
    names = [name for residual in residuals(network("bert")) for name in residual.norms]
    assert names == ["bert.embeddings.LayerNorm"]
    with pytest.raises(InvalidTransform, match="untie first"):
        CentreWriters().rewrite(network("gpt2"))


@pytest.mark.parametrize("first", [[], ["fold_norms"]])
def test_layer_norms_become_rms_norms_with_their_own_epsilon(first: list[str]) -> None:
    model = BY_NAME["gpt2"].model()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 2e-4
    before = network("gpt2", model)
    after, steps = rewrite(before, ["untie", *first, LayerToRMS()])
    assert steps[-1].change < 1e-12
    assert steps[-1].stored < 1e-5
    norms = {n: m for n, m in skeleton(after.source).named_modules() if isinstance(m, nn.RMSNorm)}
    assert len(norms) == 5
    assert all(norm.eps == 2e-4 for norm in norms.values())
    kept = {name for name, norm in norms.items() if isinstance(norm, RMSNormWithBias)}
    assert kept == ({"transformer.ln_f"} if first else set(norms)), "the head has no bias to take that of the last norm"
    assert LayerToRMS().rewrite(after) is after


def test_a_checkpoint_keeps_its_layer_norms_and_says_what_to_do(tmp_path: Path) -> None:
    untied, _ = rewrite(saved(BY_NAME["gpt2"].model(), tmp_path), ["untie"])
    assert rewrite(untied, [CentreWriters()])[1][0].change < 1e-14
    with pytest.raises(InvalidTransform, match="use centre_writers"):
        LayerToRMS().rewrite(untied)


def test_a_norm_that_its_layer_reaches_into_keeps_what_is_asked_for() -> None:
    after, _ = rewrite(network("transformer-encoder-pre"), [LayerToRMS()])
    plain = perturb(BY_NAME["transformer-encoder-pre"].build().eval(), 1)  # the fast path of torch needs a bias
    for module in plain.modules():
        if isinstance(module, nn.LayerNorm):
            module.bias.data.zero_()
    again, _ = rewrite(network("transformer-encoder-pre", plain), [LayerToRMS()])
    for result in (after, again):
        with materialised(result) as model, torch.no_grad():
            assert torch.isfinite(model(BY_NAME["transformer-encoder-pre"].inputs(plain)["x"])).all()


def test_the_compressed_norm_is_the_norm_of_the_whole_vector() -> None:
    weight, reader, h = normal(24, 16, name="w"), normal(10, 24, name="r"), normal(50, 16, name="h")
    weight = weight - weight.mean(0)
    x, small = h @ weight.T, h @ compressed_writer(weight).T
    whole = F.rms_norm(x, (24,), eps=1e-5)
    assert float((crms_norm(small, 1e-5) - whole[:, :-1]).abs().max()) < 2e-15
    read = crms_norm(small, 1e-5) @ compressed_reader(reader).T
    assert torch.allclose(read, whole @ reader.T, rtol=0, atol=1e-13)


# Order


def test_channels_are_sorted_by_what_readers_saw_and_weights_only_change_places() -> None:
    before, calibration = network("llama"), [BY_NAME["llama"].inputs(BY_NAME["llama"].model())]
    after, steps = rewrite(before, [PermuteChannels()], calibration=calibration)
    assert len(steps[0].edges) == 4, "values and the middle of the gate, twice"
    seen = observe(after, calibration)
    for block in range(2):
        down = seen[f"model.layers.{block}.mlp.down_proj:input"].abs_max
        assert bool((down[1:] <= down[:-1]).all())
        heads = (
            seen[f"model.layers.{block}.self_attn.o_proj:input"].abs_max.reshape(2, 2, 8).amax(1)
        )  # two share values
        assert bool((heads[:, 1:] <= heads[:, :-1]).all())
    for name, info in before.source.tensors.items():
        assert torch.equal(
            before.source.read(name).flatten().sort().values, after.source.read(name).flatten().sort().values
        )
        assert after.source.tensors[name] == info


def test_the_stream_and_whole_heads_are_sorted_on_request() -> None:
    before, calibration = network("llama"), [BY_NAME["llama"].inputs(BY_NAME["llama"].model())]
    after, steps = rewrite(before, [PermuteChannels(residual=True, heads=True)], calibration=calibration)
    assert len(steps[0].edges) == 7
    heads = observe(after, calibration)["model.layers.0.self_attn.o_proj:input"].abs_max.reshape(2, 16).amax(1)
    assert heads[0] >= heads[1]


# Dead channels and copies


def test_three_kinds_of_dead_channels_are_removed() -> None:
    model = gated()
    model.down.weight[:, 2] = 0.0  # nobody reads it
    model.up.weight[5], model.up.bias[5] = 0.0, 0.0  # the product is zero
    model.gate.weight[7], model.gate.bias[7] = 0.0, 0.0  # zero by silu(0) = 0 alone, which no symmetry says
    model.fc1.weight[:3], model.fc1.bias[:3] = 0.0, 0.0  # silu(0) = 0
    after, steps = rewrite(network_of(model, inputs()), [RemoveDeadChannels()])
    assert steps[0].change < 1e-14
    shapes = {name: info.shape for name, info in after.source.tensors.items()}
    assert shapes["up.weight"] == shapes["gate.weight"] == (14, 6)
    assert (shapes["up.bias"], shapes["down.weight"]) == ((14,), (8, 14))
    assert (shapes["fc1.weight"], shapes["fc2.weight"]) == ((13, 8), (5, 13))
    assert skeleton(after.source).fc1.out_features == skeleton(after.source).fc2.in_features == 13
    assert RemoveDeadChannels().rewrite(after) is after


def test_what_makes_something_of_nothing_is_not_dead() -> None:
    model = gated(torch.sigmoid)
    model.fc1.weight[:3], model.fc1.bias[:3] = 0.0, 0.0
    before = network_of(model, inputs())
    assert RemoveDeadChannels().rewrite(before) is before


def test_one_channel_always_stays() -> None:
    model = gated()
    model.fc2.weight[:] = 0.0
    after, _ = rewrite(network_of(model, inputs()), [RemoveDeadChannels()])
    assert after.source.tensors["fc1.weight"].shape == (1, 8)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_dead_and_copied_heads_are_removed(family: str) -> None:
    model = BY_NAME[family].model()
    layers = model.model.layers if family == "llama" else model.bert.encoder.layer
    first = layers[0].self_attn if family == "llama" else layers[0].attention
    values, output = (first.v_proj, first.o_proj) if family == "llama" else (first.self.value, first.output.dense)
    values.weight[8:16] = 0.0  # the second head's values
    if values.bias is not None:
        values.bias[8:16] = 0.0
    after, steps = rewrite(network(family, model), [RemoveDeadChannels()])
    assert steps[0].change < 1e-14
    share = 2 if family == "llama" else 1
    name = next(n for n, p in model.named_parameters() if p is output.weight)
    assert after.source.tensors[name].shape == (32, 32 - 8 * share)
    twin = BY_NAME[family].model()
    layers = twin.model.layers if family == "llama" else twin.bert.encoder.layer
    second = layers[1].self_attn if family == "llama" else layers[1].attention.self
    for layer in (p for n, p in second.named_children() if n.startswith(("q", "k", "v"))):
        size = layer.weight.shape[0] // 2 if family == "llama" else 8
        for tensor in (layer.weight, *([layer.bias] if layer.bias is not None else [])):
            tensor[size : 2 * size] = tensor[:size]
    merged, steps = rewrite(network(family, twin), [MergeDuplicates()])
    assert steps[0].change < 1e-14
    assert merged.source.tensors[name.replace(".0.", ".1.")].shape == (32, 32 - 8 * share)


def test_a_size_that_is_written_into_the_code_is_left_and_said() -> None:
    model = BY_NAME["gpt2"].model()
    model.transformer.h[0].attn.c_proj.weight[:8] = 0.0
    model.transformer.h[0].mlp.c_proj.weight[:8] = 0.0
    after, steps = rewrite(network("gpt2", model), [RemoveDeadChannels()])
    assert steps[0].change < 1e-14
    assert after.source.tensors["transformer.h.0.mlp.c_fc.weight"].shape == (32, 120)
    assert after.source.tensors["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
    assert "left as it was: transformer.h.0.attn.c_proj:input heads" in after.source.description


def test_copies_of_channels_are_merged() -> None:
    model = gated()
    for layer in (model.gate, model.up):
        layer.weight[4], layer.bias[4] = layer.weight[1], layer.bias[1]
        layer.weight[9], layer.bias[9] = layer.weight[1], layer.bias[1]
    model.fc1.weight[0], model.fc1.bias[0] = model.fc1.weight[3], model.fc1.bias[3]
    model.up.weight[0] = model.up.weight[2]  # the gate differs
    after, steps = rewrite(network_of(model, inputs()), [MergeDuplicates()])
    assert steps[0].change < 1e-14
    assert after.source.tensors["down.weight"].shape == (8, 14)
    assert after.source.tensors["fc1.weight"].shape == (15, 8)
    assert torch.equal(after.source.exact("down.weight")[:, 1], model.down.weight.double()[:, [1, 4, 9]].sum(1))
    assert MergeDuplicates().rewrite(after) is after


def test_a_checkpoint_loses_as_many_channels_everywhere(tmp_path: Path) -> None:
    model = BY_NAME["llama"].model()
    for layer, count in zip(model.model.layers, (3, 5), strict=True):
        layer.mlp.up_proj.weight[:count] = 0.0
    after, steps = rewrite(saved(model, tmp_path / "both"), [RemoveDeadChannels()])
    assert steps[0].change < 1e-14
    assert after.source.config["intermediate_size"] == 53
    assert "2 more left" in after.source.description
    one = BY_NAME["llama"].model()
    one.model.layers[0].mlp.up_proj.weight[:3] = 0.0
    with pytest.raises(InvalidTransform, match="has no dead channel"):
        RemoveDeadChannels().rewrite(saved(one, tmp_path / "one"))
    heads = BY_NAME["llama"].model()
    for layer in heads.model.layers:
        layer.self_attn.v_proj.weight[:8] = 0.0
    with pytest.raises(InvalidTransform, match="stands for"):
        RemoveDeadChannels().rewrite(saved(heads, tmp_path / "heads"))


# SplitQuant


def rounded(values: Tensor, bits: int, *, zero: bool = True) -> Tensor:
    """Asymmetric rounding of a whole tensor, with or without a code for zero."""
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    offset = (low / scale).round() if zero else low / scale + 0.37
    return ((values / scale - offset).round().clamp(0, 2**bits - 1) + offset) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_parts_are_disjoint_and_add_up_bit_for_bit(dtype: torch.dtype) -> None:
    values = normal(40, 30, name="split").to(dtype)
    parts = split_parts(values)
    assert torch.equal(parts[0] + parts[1] + parts[2], values)
    assert int(sum((part != 0).int() for part in parts).max()) == 1
    lows, highs = [float(p[p != 0].min()) for p in parts], [float(p[p != 0].max()) for p in parts]
    assert highs[0] < lows[1] <= highs[1] < lows[2]
    assert all(torch.equal(a, b) for a, b in zip(split_parts(torch.zeros(3)), torch.zeros(3, 3), strict=True))


def test_means_on_a_line_are_those_of_k_means() -> None:
    values = torch.cat([normal(50, name="a") - 9, normal(20, name="b"), normal(30, name="c") + 9])
    means = line_means(values)
    assert torch.allclose(means, torch.stack([values[:50].mean(), values[50:70].mean(), values[70:].mean()]))


@pytest.mark.parametrize(("bits", "gain"), [(2, 0.95), (4, 0.3), (8, 0.3)])
def test_splitting_lowers_the_error_where_outliers_stretch_the_range(bits: int, gain: float) -> None:
    values = normal(100_000, name="outliers")
    values[torch.randperm(100_000, generator=stream(0, "where"))[:50]] *= 8
    size = values.square().mean()
    whole = (rounded(values, bits) - values).square().mean() / size
    parts = (sum(rounded(part, bits) for part in split_parts(values)) - values).square().mean() / size
    offset = (sum(rounded(part, bits, zero=False) for part in split_parts(values)) - values).square().mean() / size
    assert parts < gain * whole
    assert offset > 1.5 * parts, "without a code for zero each part adds an offset"


def test_layers_become_sums_of_three() -> None:
    model = gated()
    after, steps = rewrite(network_of(model, inputs()), [SplitQuant()])
    assert steps[0].change < 1e-14
    assert isinstance(skeleton(after.source).fc1, Split)
    for name, parameter in model.named_parameters():
        layer, _, own = name.rpartition(".")
        assert torch.equal(sum(after.source.read(f"{layer}.{part}.{own}") for part in PARTS), parameter)
    assert {f"fc1.{part}" for part in PARTS} <= set(after.by_name)


def test_convolutions_are_split_kernel_by_kernel_and_layers_others_reach_into_stay_whole() -> None:
    before = network("resnet-torch")
    after, _ = rewrite(before, [SplitQuant()])
    weight = before.source.read("layer1.0.conv1.weight")
    lower = after.source.read("layer1.0.conv1.lower.weight")
    assert torch.equal(lower[3], split_parts(weight[3])[0])
    assert "fc.lower" in rewrite(before, [SplitQuant(convolutions=False)])[0].by_name
    encoder, _ = rewrite(network("transformer-encoder"), [SplitQuant()])
    assert {"head.lower", "encoder.layers.0.linear1"} <= set(encoder.by_name)


# Complex numbers


def test_a_real_matrix_is_a_widely_linear_one_and_back() -> None:
    weight, x = normal(12, 20, name="real", dtype=torch.float32), normal(20, name="x")
    u, v = to_widely_linear(weight)
    assert torch.equal(to_real(u, v).float(), weight)
    z = torch.complex(*x.chunk(2))
    y = u @ z + v @ z.conj()
    assert torch.allclose(torch.cat([y.real, y.imag]), weight.double() @ x, rtol=0, atol=1e-14)
    with pytest.raises(InvalidFormat, match="no halves"):
        to_widely_linear(weight[:11])


def test_errors_of_phases_by_stage() -> None:
    z = torch.complex(normal(500, 500, name="re"), normal(500, 500, name="im"))
    stages = phase_stages(z, 4)
    left = [float((z - sum(stages[: t + 1])).abs().square().mean() / z.abs().square().mean()) for t in range(4)]
    assert left == pytest.approx([0.3637, 0.1309, 0.0588, 0.0333], abs=3e-3)
    phases = round_phases(z)
    assert len({(round(float(p.real), 9), round(float(p.imag), 9)) for p in phases.flatten()[:500]}) == 4


def test_layers_become_widely_linear() -> None:
    after, steps = rewrite(network_of(gated(), inputs()), [WidelyLinear()])
    assert steps[0].change < 1e-14
    kinds = {name: type(module) for name, module in skeleton(after.source).named_children()}
    assert kinds["fc1"] is WidelyLinearLayer
    assert kinds["fc2"] is nn.Linear, "five outputs have no halves"
    assert after.source.stored_bytes == network_of(gated(), inputs()).source.stored_bytes
    rotated, steps = rewrite(network("gpt2"), [WidelyLinear()])
    assert steps[0].change < 1e-14
    assert rotated.source.tensors["transformer.h.0.mlp.c_fc.u_real.weight"].shape == (64, 16)


# The source that they make


def test_a_made_tensor_too_large_for_its_type_is_refused() -> None:
    source: Source = network_of(gated().half(), inputs()).source
    made = Made((5,), "float16", lambda read: read("fc2.bias") * 1e6)
    with pytest.raises(InvalidWeights, match="beyond what float16 holds"):
        Rebuilt(source, {"fc2.bias": made}, what="scaled").read("fc2.bias")


def test_rewrites_follow_each_other_without_rounding_between() -> None:
    model = BY_NAME["vit"].model()
    before = network("vit", model)
    after, steps = rewrite(before, ["fold_norms", LayerToRMS(), RemoveDeadChannels(), WidelyLinear()])
    assert change(outputs(before), outputs(after)) < 1e-13
    assert len(steps) == 4
