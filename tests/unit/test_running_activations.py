"""Networks that read rounded numbers, against the same arithmetic with integers, and how a plan names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pennyweight as pw
from pennyweight.errors import InvalidMethod, InvalidModel, MissingStatistics, UnknownName
from pennyweight.flow.activations import quantizers
from pennyweight.flow.observe import observe
from pennyweight.formats import Format, Grid, Progressive, passing
from pennyweight.formats import parse as parse_format
from pennyweight.network.network import Network
from pennyweight.network.running.activations import activations
from pennyweight.numerics.hadamard import transform
from pennyweight.numerics.integer import linear
from pennyweight.plan import Input

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(3))


class Exact:
    """Rounds nothing, and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def rounded(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


def sites_of(network: Network) -> list[str]:
    return [site.name for site in network.sites if site.role == "linear"]


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3", "gemma2"])
def test_rounding_nothing_changes_nothing(
    family: str, model_of: Callable[[str], nn.Module], network_of: Callable[[str], Network]
) -> None:
    model, look = model_of(family), Exact()
    before = logits(model)
    with activations(model, dict.fromkeys(sites_of(network_of(family)), look)):
        assert torch.equal(logits(model), before)
    assert len(look.seen) == len(sites_of(network_of(family)))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_attention_step_by_step_is_attention(family: str, model_of: Callable[[str], nn.Module]) -> None:
    """Causal masks, windows, and keys that groups of queries share among them."""
    model, look = model_of(family), Exact()
    before = logits(model)
    with activations(model, {}, probabilities=look):
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert len(look.seen) == 2
    for p in look.seen:
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
        assert float(p.triu(1).abs().max()) == 0


@pytest.mark.parametrize("weight", ["int8 row sym", "int4 row asym", "int4 g32 asym", "int4 g32 progressive"])
@pytest.mark.parametrize("label", ["int8 token", "int8 token asym", "static_mse int8 tensor", "int4 token", "int6 g32"])
def test_every_site_computes_what_integers_give(
    label: str, weight: str, model_of: Callable[[str], nn.Module], network_of: Callable[[str], Network],
    windows_of: Callable[..., Any],
) -> None:  # fmt: skip
    """The simulated product of each layer, in float32, against int8 codes, int32 sums and scales afterwards."""
    network, model, format = network_of("llama"), model_of("llama"), parse_format(weight)
    chosen = dict.fromkeys(sites_of(network), Input.parse(label))
    fitted = quantizers(chosen, observe(network, windows_of(4, 32)))
    parameters, checked = dict(model.named_parameters()), list[str]()
    outputs: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(site).register_forward_hook(lambda _, __, y, site=site: outputs.__setitem__(site, y))
        for site in fitted
    ]
    inputs: dict[str, Tensor] = {}

    class Looking:
        def __init__(self, site: str) -> None:
            self.site = site

        def rounded(self, x: Tensor) -> Tensor:
            inputs[self.site] = x
            return fitted[self.site].rounded(x)

    with activations(model, {site: Looking(site) for site in fitted}, round_weights=lambda _, w: on(format, w)):
        logits(model)
    for handle in handles:
        handle.remove()
    for site, quantizer in fitted.items():
        part = format.store(parameters[f"{site}.weight"])
        assert isinstance(format, Grid | Progressive)
        side = format.operand(part.tensors, tuple(parameters[f"{site}.weight"].shape))
        whole = linear(quantizer.codes(inputs[site]).operand(), side).reshape(outputs[site].shape)
        torch.testing.assert_close(whole, outputs[site], rtol=1e-4, atol=1e-5 * float(outputs[site].abs().max()))
        checked.append(site)
    assert len(checked) == 14


def on(format: Format, weight: Tensor) -> Tensor:
    return format.decode(format.store(weight).tensors, tuple(weight.shape))


def test_fewer_bits_change_more(
    model_of: Callable[[str], nn.Module], network_of: Callable[[str], Network], windows_of: Callable[..., Any]
) -> None:
    model, network = model_of("llama"), network_of("llama")
    before, seen, changes = logits(model), observe(network, windows_of(4, 32)), []
    for label in ("int8 token", "int6 g32", "int4 token", "int2 token"):
        fitted = quantizers(dict.fromkeys(sites_of(network), Input.parse(label)), seen)
        with activations(model, fitted):
            changes.append(float((logits(model) - before).norm() / before.norm()))
    assert changes == sorted(changes)
    assert 0 < changes[0] < 0.05 < changes[-1]


def test_rotations_come_before_rounding(model_of: Callable[[str], nn.Module]) -> None:
    model, look, site = model_of("llama"), Exact(), "model.layers.0.mlp.down_proj"
    before = logits(model)
    with activations(model, {site: look}, rotations={site: transform}):
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    with activations(model, {site: (plain := Exact())}):
        logits(model)
    torch.testing.assert_close(look.seen[0], transform(plain.seen[0]))


def vit(attention: str) -> nn.Module:
    from transformers import AutoModel, ViTConfig

    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                       image_size=16, patch_size=4)  # fmt: skip
    with torch.random.fork_rng():
        model: nn.Module = AutoModel.from_config(config, attn_implementation=attention)
    return model.eval()


def test_probabilities_of_a_vision_transformer() -> None:
    model, image = vit("sdpa"), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    errors = {}
    with torch.no_grad():
        before = model(pixel_values=image).last_hidden_state
        for label in ("log-sqrt2 6bit tensor", "log-sqrt2 3bit tensor"):
            rounding = passing.Static(passing.parse(label), torch.ones(1), None)
            with activations(model, {}, probabilities=rounding):
                after = model(pixel_values=image).last_hidden_state
            errors[label] = float((after - before).norm() / before.norm())
        with activations(model, {}, probabilities=Exact()):
            torch.testing.assert_close(model(pixel_values=image).last_hidden_state, before, rtol=1e-4, atol=1e-5)
    assert 0 < errors["log-sqrt2 6bit tensor"] < errors["log-sqrt2 3bit tensor"]


def test_attention_that_is_not_seen_is_said() -> None:
    model = vit("eager")
    with pytest.raises(InvalidModel, match="attention was never seen"), activations(model, {}, probabilities=Exact()):
        model(pixel_values=torch.zeros(1, 3, 16, 16))


def test_attention_inside_a_module_of_torch_is_seen() -> None:
    layer, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(2, 5, 16)
    look = Exact()
    with torch.no_grad():
        before, _ = layer(x, x, x, need_weights=False)
        with activations(layer, {"out_proj": (read := Exact())}, probabilities=look):
            after, _ = layer(x, x, x, need_weights=False)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
    assert look.seen[0].shape == (2, 4, 5, 5)
    assert len(read.seen) == 1


# --- how a plan names it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", Input.examples(), ids=lambda one: one.label())
def test_labels_of_inputs_are_read_back(one: Input) -> None:
    assert Input.parse(one.label()) == one
    assert Input.parse(f"{one.method} {one.format.label()}") == one


def test_the_usual_method_is_not_said() -> None:
    assert Input.parse("dynamic int8 token").label() == "int8 token"
    assert Input.parse("static_range int8 tensor").label() == "int8 tensor"
    assert (
        Input.parse("static_mse(candidates=9) int8 tensor asym").label() == "static_mse(candidates=9) int8 tensor asym"
    )
    assert {one.method.partition("(")[0] for one in Input.examples()} == {
        "dynamic", "static_range", "static_mse", "static_percentile", "static_entropy", "sort_and_cluster",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "int8", "dynamic", "static_mse", "static_mse(candidates=9)", "gptq int4 row sym"])
def test_what_names_no_input(text: str) -> None:
    with pytest.raises(UnknownName):
        Input.parse(text)


def test_what_cannot_be_fitted_is_said(llama_directory: Path) -> None:
    site = "model.layers.0.mlp.down_proj"
    with pytest.raises(MissingStatistics, match="range"):
        quantizers({site: Input.parse("int8 tensor")}, {})
    with pytest.raises(InvalidMethod, match="does not choose"):
        quantizers({site: Input("static_mse", passing.parse("int8 token"))}, {})
    with pytest.raises(UnknownName, match="static_mean"):
        quantizers({site: Input("static_mean", passing.parse("int8 tensor"))}, {})
    assert list(quantizers({site: Input.parse("int8 token")}, {})) == [site]


class Convolutions(nn.Module):
    """One of each dimension, with strides, padding and groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, 2, 1), nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.third = nn.Conv1d(6, 4, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(x).relu()).flatten(2))
        return y


@torch.no_grad()
@pytest.mark.parametrize("label", ["int4 tensor", "int4 tensor asym", "static_mse int8 channel"])
def test_convolutions_read_rounded_numbers(label: str) -> None:
    """What observes them, fits ranges and rounds agrees on where channels are: scales are not of columns."""
    with torch.random.fork_rng():
        torch.set_rng_state(torch.Generator().manual_seed(5).get_state())
        model, x = Convolutions().eval(), torch.randn(4, 2, 10, 10)
    names = ["first", "second", "third"]
    with activations(model, dict.fromkeys(names, Exact())):
        assert torch.equal(model(x), model(x))
    seen = observe(pw.network_of(model, {"x": x}), [{"x": x}])
    fitted = quantizers(dict.fromkeys(names, Input.parse(label)), seen)

    def rounded(site: str, y: Tensor) -> Tensor:
        return fitted[site].rounded(y.movedim(1, -1)).movedim(-1, 1)

    by_hand = model.second(rounded("second", model.first(rounded("first", x)).relu())).flatten(2)
    before, by_hand = model(x), model.third(rounded("third", by_hand))
    with activations(model, fitted):
        torch.testing.assert_close(model(x), by_hand)
    assert not torch.allclose(by_hand, before)
    assert torch.equal(model(x), before)


@torch.no_grad()
def test_kernels_are_rounded_with_channels_last_and_never_turned() -> None:
    model, x, shown = Convolutions().eval(), torch.ones(1, 2, 10, 10), list[tuple[int, ...]]()

    def coarse(_: str, weight: Tensor) -> Tensor:
        shown.append(tuple(weight.shape))
        return (weight * 8).round() / 8

    with activations(model, {"first": Exact()}, round_weights=coarse):
        found = model(x)
        model(x)
    assert shown == [(8, 3, 3, 2)]
    kernel = model.first.weight.clone()
    model.first.weight.copy_((kernel * 8).round() / 8)
    torch.testing.assert_close(model(x), found)
    with pytest.raises(InvalidModel, match="never seen"), activations(model, {}, rotations={"first": transform}):
        model(x)


@torch.no_grad()
def test_the_rows_that_are_kept_are_from_all_over_every_picture_and_text() -> None:
    """An even stride over a batch is a whole number of items where there are 32 of them: always the same place."""
    place = torch.arange(196.0).reshape(1, 1, 14, 14).expand(32, 1, 14, 14)
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    kept = observe(pw.network_of(model, {"input": place}), [{"input": place}] * 10)["0:input"].sample
    assert kept is not None
    assert len(kept) == 256
    halves = (kept.flatten() < 98).double().mean()
    assert 0.4 < float(halves) < 0.6
    assert len(kept.unique()) > 100
