"""Every symmetry that is reported is exact: transforms are folded in by hand, and the network answers as before."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from families import BY_NAME, FAMILIES, Family, Perceptron, perturb
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pennyweight.network.finding.norms import norm_of
from pennyweight.network.finding.symmetry import Symmetry, symmetries
from pennyweight.network.finding.watch import returned
from pennyweight.numerics.double import Float64, to_double
from pennyweight.numerics.random import stream


def answers(model: nn.Module, inputs: dict) -> dict[str, Tensor]:
    if hasattr(getattr(model, "config", None), "_experts_implementation"):
        model.config._experts_implementation = "eager"  # the grouped product knows no float64
    with torch.no_grad(), Float64():
        return returned(model(**{k: to_double(v) for k, v in inputs.items()}))


def drawn(symmetry: Symmetry, generator: torch.Generator) -> Tensor:
    """A random member of the group, as a matrix."""
    n, b = symmetry.size, symmetry.block

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if symmetry.group == "permutation":
        return torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator)]
    if symmetry.group == "positive":
        return torch.diag(torch.exp(normal(n) / 2))
    if symmetry.group == "diagonal":
        return torch.diag(torch.exp(normal(n) / 2) * torch.where(normal(n) < 0, -1.0, 1.0))
    if symmetry.group == "orthogonal":
        assert b == n
        if not symmetry.fixes_mean:
            return torch.linalg.qr(normal(n, n))[0]
        first = torch.cat([torch.ones(n, 1, dtype=torch.float64), normal(n, n - 1)], 1)
        basis = torch.linalg.qr(first)[0]
        inner = torch.eye(n, dtype=torch.float64)
        inner[1:, 1:] = torch.linalg.qr(normal(n - 1, n - 1))[0]
        return basis @ inner @ basis.T
    assert symmetry.group == "invertible"
    return torch.block_diag(*(torch.eye(b, dtype=torch.float64) + 0.3 * normal(b, b) / b**0.5 for _ in range(n // b)))


def spread(matrix: Tensor, index: Tensor, size: int) -> Tensor:
    """The transform of a port whose channels follow those of the edge, each copy on its own."""
    out = torch.eye(len(index), dtype=torch.float64)
    chosen = (index >= 0).nonzero().flatten()
    follows = index[chosen]
    copy = (torch.tril(follows[:, None] == follows[None], -1)).sum(1)
    same = copy[:, None] == copy[None]
    out[chosen[:, None], chosen] = torch.where(same, matrix[follows[:, None], follows], 0.0)
    return out


def folded(model: nn.Module, symmetry: Symmetry, matrix: Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
    """Parameters and buffers with the transform in them."""
    state = {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
    contra = torch.linalg.inv(matrix).T
    done = set()
    for side in symmetry.sides:
        port = side.port
        if (port.parameter, port.dim, port.channels) in done:
            continue
        done.add((port.parameter, port.dim, port.channels))
        if symmetry.group == "orthogonal" and port.parameter.rpartition(".")[0] in symmetry.norms:
            continue  # neutral, and a norm without gain commutes with rotations
        acting = spread(contra if side.inverse else matrix, side.index, symmetry.size)
        tensor = state[port.parameter]
        grouped = port.groups > 1 and port.dim == 1 and side.inverse
        if grouped:  # [out, in / groups, ...] as [out / groups, in / groups, ..., groups]
            whole = tensor.unflatten(0, (port.groups, -1)).movedim(0, 1).flatten(1, 2)
            moved = whole.movedim(1, -1).clone()
        else:
            moved = tensor.movedim(port.dim, -1).clone()
        channels = list(port.channels) if port.channels is not None else list(range(moved.shape[-1]))
        part = moved[..., channels] + (port.offset if port.kind == "gain" else 0.0)
        part = part @ acting.T
        if shift is not None and port.kind == "bias" and not side.inverse:
            part = part + shift[side.index.clamp(min=0)] * (side.index >= 0)
        moved[..., channels] = part - (port.offset if port.kind == "gain" else 0.0)
        if grouped:
            back = moved.movedim(-1, 1).unflatten(1, (port.groups, -1)).movedim(1, 0).flatten(0, 1)
            state[port.parameter] = back.contiguous()
        else:
            state[port.parameter] = moved.movedim(-1, port.dim).contiguous()
    if shift is not None:
        for side in symmetry.readers:
            moved = state[side.port.parameter].movedim(side.port.dim, -1)
            if side.port.channels is not None:
                moved = moved[..., list(side.port.channels)]
            constant = shift[side.index.clamp(min=0)] * (side.index >= 0)
            assert side.bias is not None
            bias = state[side.bias.parameter]
            where = list(side.bias.channels) if side.bias.channels is not None else list(range(len(bias)))
            bias[where] -= moved @ constant
    return state


def answers_with(model: nn.Module, state: dict[str, Tensor], inputs: dict) -> dict[str, Tensor]:
    before = {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    try:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.data.copy_(state[name])
            return answers(model, inputs)
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.data.copy_(before[name])


def error(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in b)


def neutral(model: nn.Module, names: tuple[str, ...]) -> None:
    """Take gain and bias out of norms."""
    modules = dict(model.named_modules())
    for name in names:
        norm = norm_of(modules[name])
        with torch.no_grad():
            if norm.gain:
                getattr(modules[name], norm.gain).fill_(1.0 - norm.offset)
            if norm.bias:
                getattr(modules[name], norm.bias).fill_(0.0)


def worst(model: nn.Module, inputs: dict, found: tuple[Symmetry, ...]) -> list[tuple[float, Symmetry]]:
    """How far the answers move when each symmetry is folded in."""
    model = model.double()
    plain = answers(model, inputs)
    errors = []
    for symmetry in found:
        own, reference = model, plain
        if symmetry.norms:
            kept = {n: p.detach().clone() for n, p in model.named_parameters()}
            neutral(model, symmetry.norms)
            reference = answers(model, inputs)
        generator = stream(0, "fold", symmetry.name, symmetry.group)
        matrix, shift = drawn(symmetry, generator), None
        held = {s.port.kind for s in symmetry.writers} >= {"bias"} and all(s.bias is not None for s in symmetry.readers)
        if symmetry.shift and held:
            shift = torch.randn(symmetry.size, generator=generator, dtype=torch.float64)
        changed = answers_with(own, folded(own, symmetry, matrix, shift), inputs)
        errors.append((error(changed, reference), symmetry))
        if symmetry.norms:
            with torch.no_grad():
                for n, p in model.named_parameters():
                    p.copy_(kept[n])
    return errors


# What is found is exact


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_symmetry_is_exact(family: Family):
    model = family.model()
    inputs = family.inputs(model)
    found = symmetries(model, inputs)
    assert found
    for off, symmetry in worst(model, inputs, found):
        assert off < 1e-10, f"{symmetry.name}: {symmetry.label()} moves the answers by {off:.1e}"


@pytest.mark.parametrize("seed", [1, 2])
def test_exact_for_other_numbers_too(seed):
    for name in ("llama-tied", "resnet-torch", "twice"):
        model = BY_NAME[name].model(seed)
        inputs = BY_NAME[name].inputs(model)
        assert all(off < 1e-10 for off, _ in worst(model, inputs, symmetries(model, inputs)))


# What is there is found


@lru_cache
def found_in(name: str) -> list[Symmetry]:
    model = BY_NAME[name].model()
    return list(symmetries(model, BY_NAME[name].inputs(model)))


def places(symmetry: Symmetry) -> set[tuple[str, bool]]:
    return {(side.port.parameter, side.inverse) for side in symmetry.sides}


def one(found: list[Symmetry], group: str, *parameters: str) -> Symmetry:
    """The symmetry of a group that changes all tensors whose names end so."""
    fits = [
        s for s in found
        if s.group == group and all(any(p.endswith(end) for p, _ in places(s)) for end in parameters)
    ]  # fmt: skip
    assert fits, f"no {group} of {parameters} among " + "; ".join(f"{s.name} {s.label()}" for s in found)
    return fits[0]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_decoders_with_rotary_positions(name):
    found = found_in(name)
    assert len(one(found, "orthogonal", "embed_tokens.weight", "lm_head.weight").norms) == 5
    assert not one(found, "orthogonal").fixes_mean
    one(found, "diagonal", "0.input_layernorm.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")
    values = one(found, "invertible", "0.self_attn.v_proj.weight", "0.self_attn.o_proj.weight")
    assert (values.size, values.block) == (16, 8)
    assert values.readers[0].index.tolist() == [*range(8), *range(8), *range(8, 16), *range(8, 16)]  # two heads a value
    one(found, "diagonal", "0.mlp.up_proj.weight", "0.mlp.down_proj.weight")
    one(found, "permutation", "0.mlp.gate_proj.weight", "0.mlp.up_proj.weight", "0.mlp.down_proj.weight")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "phi3"])
def test_heads_change_places_with_their_keys_and_values(name):
    heads = [s for s in found_in(name) if s.name.endswith(" heads")]
    assert [s.size for s in heads] == [2, 2]


def test_rotary_pairs_share_a_scale():
    pair = next(s for s in found_in("llama") if " x " in s.name)
    assert (pair.group, pair.size) == ("diagonal", 8)  # two heads of eight channels, half as many scales
    assert pair.sides[-1].index.tolist()[:8] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_without_rotary_positions_heads_mix():
    for name in ("opt", "gpt2", "bert", "bloom"):
        pairs = [s for s in found_in(name) if " x " in s.name]
        assert [(s.group, s.size, s.block) for s in pairs] == [("invertible", 32, 8)] * 2, name


def test_latent_attention():
    found = found_in("deepseek-v3")
    mixing = [s for s in found if s.group == "invertible"]
    assert [s.block for s in mixing if "kv_b_proj" in s.name and " x " not in s.name] == [6, 6]
    assert [s.block for s in mixing if " x " in s.name] == [8, 8]
    rotated = [s for s in found if " x " in s.name and s.group == "diagonal"]
    assert [s.size for s in rotated] == [2, 2]  # four channels that all heads share, in pairs of neighbours
    one(found, "orthogonal", "q_a_proj.weight", "q_b_proj.weight")
    one(found, "orthogonal", "kv_a_proj_with_mqa.weight", "kv_b_proj.weight")  # whose other channels are another edge's


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "olmoe", "deepseek-v3", "jamba"])
def test_stacked_experts(name):
    found = found_in(name)
    up = next(s for s in found if "experts.gate_up_proj:output" in s.name)
    assert up.group == "diagonal"
    assert up.writers[0].port.channels == tuple(range(up.size, 2 * up.size))
    both = next(s for s in found if "experts.down_proj:input" in s.name)
    assert (both.group, both.size) == ("permutation", up.size)
    assert [side.port.channels[0] for side in both.writers] == [0, up.size]
    one(found, "orthogonal", "experts.down_proj", "experts.gate_up_proj")


def test_a_norm_that_subtracts_the_mean_keeps_it():
    for name in ("opt", "gpt2", "gpt-neox", "falcon", "vit", "transformer-encoder-pre"):
        assert one(found_in(name), "orthogonal").fixes_mean, name


def test_convolutions_through_a_rectifier():
    found = found_in("resnet-torch")
    one(found, "positive", "layer1.0.bn1.weight", "layer1.0.bn1.bias", "layer1.0.conv2.weight")
    order = one(found, "permutation", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.conv2.weight")
    assert {"layer1.0.bn1.running_mean", "layer1.0.bn1.running_var"} <= {p for p, _ in places(order)}
    stage = one(found, "permutation", "layer2.0.downsample.0.weight", "layer2.1.conv2.weight", "fc.weight")
    assert stage.size == 16


def test_convolutions_of_single_channels_pass_an_order_on():
    found = found_in("mobilenet-v2")
    single = [s for s in found if s.group == "permutation" and any(side.port.groups > 1 for side in s.sides)]
    assert len(single) > 10
    names = {p for p, _ in places(single[3])}
    assert any("expand" in n for n in names)
    assert any("conv_3x3" in n for n in names)
    assert any("reduce" in n for n in names)


def test_encoder_and_decoder():
    found = found_in("t5")
    tied = one(found, "orthogonal", "shared.weight")
    assert any("encoder" in p for p, _ in places(tied))
    assert any("decoder" in p for p, _ in places(tied))
    one(found, "positive", "encoder.block.0.layer.1.DenseReluDense.wi.weight")
    whisper = found_in("whisper")
    one(whisper, "diagonal", "encoder.layer_norm.weight", "encoder_attn.k_proj.weight", "encoder_attn.v_proj.weight")


def test_fused_attention_of_torch():
    found = found_in("transformer-encoder-pre")
    values = one(found, "invertible", "layers.0.self_attn.in_proj_weight", "layers.0.self_attn.out_proj.weight")
    assert values.writers[0].port.channels == tuple(range(64, 96))


def test_one_layer_called_twice_changes_once():
    for symmetry in found_in("twice"):
        keys = [(s.port.parameter, s.port.dim, s.inverse) for s in symmetry.sides]
        assert len(keys) == len(set(keys))
    one(found_in("twice"), "permutation", "shared.weight", "before.weight", "after.weight")


def test_tied_experts_and_shapes_of_one():
    model = perturb(nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 3)).eval())
    found = symmetries(model, {"input": torch.randn(2, 5, 4, generator=stream(0))})
    assert [(s.group, s.size) for s in found] == [("positive", 1)]
    assert worst(model, {"input": torch.randn(2, 5, 4, generator=stream(0))}, found)[0][0] < 1e-12


def test_weights_are_not_looked_at():
    plain, inputs = BY_NAME["llama"].model(), BY_NAME["llama"].inputs(BY_NAME["llama"].model())
    empty = BY_NAME["llama"].model()
    for module in empty.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    a, b = symmetries(plain, inputs), symmetries(empty, inputs)
    assert [(s.name, s.label()) for s in a] == [(s.name, s.label()) for s in b]
    assert all(parameter.device.type == "meta" for parameter in empty.parameters())


# What is not there is not


def groups(between, hidden: int = 12) -> set[str]:
    model = Perceptron(between, hidden).eval()
    return {s.group for s in symmetries(model, {"x": torch.randn(2, 9, 6, generator=stream(0))})}


def test_what_lies_between_decides():
    assert groups(F.gelu) == {"permutation"}
    assert groups(F.relu) == {"positive", "permutation"}
    assert groups(lambda x: F.relu(x, inplace=True)) == {"positive", "permutation"}
    assert groups(lambda x: x) == {"invertible"}
    assert groups(torch.abs) == {"positive", "permutation"}
    assert groups(lambda x: x.softmax(-1)) == {"permutation"}
    assert groups(lambda x: x.cumsum(-1)) == set()
    assert groups(F.relu, 13) == {"positive", "permutation"}


@pytest.mark.parametrize("name", ["bert", "roberta", "transformer-encoder", "gemma2", "gemma3"])
def test_no_rotation_where_a_gain_is_added_to_the_residual(name):
    assert not [s for s in found_in(name) if s.group == "orthogonal"]


def test_a_tied_tensor_takes_no_scale():
    for symmetry in found_in("llama-tied"):
        if symmetry.group not in ("orthogonal", "permutation"):
            assert not any("embed_tokens" in p for p, _ in places(symmetry))


def test_what_is_returned_stays():
    for name in ("llama", "resnet", "clip", "dit", "unet"):
        model = BY_NAME[name].model()
        heads = (
            "lm_head.weight",
            "classifier.1.weight",
            "text_projection.weight",
            "proj_out_2.weight",
            "conv_out.weight",
        )
        for symmetry in symmetries(model, BY_NAME[name].inputs(model)):
            assert not any(s.port.parameter in heads and s.port.dim == 0 for s in symmetry.sides)


def test_numbers_used_in_two_ways_are_left_alone():
    class Both(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.first.weight.norm()

    found = symmetries(Both(F.relu).eval(), {"x": torch.randn(2, 9, 6, generator=stream(0))})
    assert not any("first.weight" in p for s in found for p, _ in places(s))


def test_no_shift_into_a_padded_convolution():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)).eval()
    found = symmetries(model, {"input": torch.randn(2, 3, 8, 8, generator=stream(0))})
    assert [(s.group, s.block, s.shift) for s in found] == [("invertible", 8, False)]
