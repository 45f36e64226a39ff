"""Rotations and learned transforms: the function stays, orthogonality holds, and what they are for happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import BY_NAME, perturb
from torch import Tensor, nn

from pennyweight.errors import InvalidMethod, InvalidModel, InvalidTransform
from pennyweight.flow.observe import observe
from pennyweight.flow.rewrite import rewrite
from pennyweight.methods.rewrites import Hadamard, LearnedRotation, LearnedScale, RandomRotation
from pennyweight.methods.rewrites.hadamard import random_hadamard_or
from pennyweight.methods.rewrites.learned_rotation import RotatedError, cayley, nearest_orthogonal
from pennyweight.methods.rewrites.learned_scale import LayerError
from pennyweight.methods.rewrites.learning import layers_of, rounded, some_readers
from pennyweight.methods.rewrites.readers import largest_read, largest_weight
from pennyweight.methods.rewrites.rotations import drawn, rotatable, rotation
from pennyweight.methods.rewrites.smoothquant import smoothing
from pennyweight.network.changing.fold import Fold, Rewritten, Transform, activation, exact
from pennyweight.network.finding.kinds import holds_shift, norm_of_edge
from pennyweight.network.finding.symmetry import DIAGONAL, INVERTIBLE, ORTHOGONAL, Symmetry
from pennyweight.network.finding.trace import network_of, symmetries_of
from pennyweight.network.network import Network
from pennyweight.network.running.online import identity, in_blocks, online
from pennyweight.numerics.hadamard import keeping_mean, mean_free_basis, random_orthogonal, transform
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics

TOKENS = {"input_ids": torch.randint(0, 96, (4, 24), generator=stream(0, "tokens")), "use_cache": False}


@cache
def network(name: str) -> Network:
    model = BY_NAME[name].model()
    return network_of(model, BY_NAME[name].inputs(model))


@cache
def untied(name: str) -> Network:
    return rewrite(network(name), ["untie"])[0] if network(name).tied else network(name)


@cache
def with_outliers() -> Network:
    """A llama whose stream has three channels that everything written to it makes thirty times as large."""
    model = BY_NAME["llama"].model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter[:, [3, 11, 20]] *= 30
            if "o_proj" in name or "down_proj" in name:
                parameter[[3, 11, 20]] *= 30
    return network_of(model, BY_NAME["llama"].inputs(model))


@cache
def statistics(which: str) -> Mapping[str, Statistics]:
    return observe(with_outliers() if which == "outliers" else network(which), [TOKENS])


def space(found: Network) -> Symmetry:
    return next(s for s in symmetries_of(found) if s.group == ORTHOGONAL)


def kurtosis(x: Tensor) -> float:
    x = x.double()
    x = x - x.mean(-1, keepdim=True)
    return float((x.pow(4).mean(-1) / x.square().mean(-1).square()).mean())


# The function stays


@pytest.mark.parametrize("method", ["hadamard", "random_rotation"])
@pytest.mark.parametrize(
    "name", ["llama", "llama-tied", "qwen3", "opt", "gpt2", "gpt-neox", "mixtral", "phi3", "vit"]
)  # fmt: skip
def test_the_stream_and_heads_are_rotated_and_nothing_else_changes(name: str, method: str) -> None:
    _, steps = rewrite(untied(name), [method])
    assert steps[-1].change < 1e-12
    groups = {s.name: s.group for s in symmetries_of(untied(name)) if s.group in (ORTHOGONAL, INVERTIBLE)}
    turned = {groups[edge] for edge in steps[-1].edges if edge in groups}
    assert turned == {ORTHOGONAL, INVERTIBLE}


@pytest.mark.parametrize("name", ["llama", "opt", "qwen3"])
@pytest.mark.parametrize("method", [LearnedRotation(steps=2, rows=16), LearnedScale(steps=2, rows=16)])
def test_what_is_learned_changes_nothing_either(name: str, method: Any) -> None:
    _, steps = rewrite(untied(name), [method], calibration=[TOKENS])
    assert steps[-1].change < 1e-12
    assert steps[-1].edges


def test_rotations_follow_scales() -> None:
    _, steps = rewrite(network("llama"), ["smoothquant", "hadamard", "random_rotation"], calibration=[TOKENS])
    assert all(step.change < 1e-12 for step in steps)


def test_a_bias_that_no_layer_can_take_turns_with_the_stream() -> None:
    """The head of GPT-NeoX has no bias, so the last norm keeps its own: it is rotated, not folded."""
    found, _ = rewrite(network("gpt-neox"), ["hadamard"])
    before, after = (exact(n.source, "gpt_neox.final_layer_norm.bias") for n in (network("gpt-neox"), found))
    gain = exact(network("gpt-neox").source, "gpt_neox.final_layer_norm.weight")
    assert float((before / gain).norm()) == pytest.approx(float(after.norm()), rel=1e-12)
    assert float((before / gain - after).abs().max()) > 1e-2


def test_gains_are_one_afterwards_and_twice_is_a_rotation_again() -> None:
    once, _ = rewrite(network("llama"), ["hadamard"])
    gains = [exact(once.source, name) for name in once.source.tensors if "norm" in name]
    assert all(float((gain - 1).abs().max()) < 1e-12 for gain in gains)
    _, steps = rewrite(once, ["hadamard"])
    assert steps[-1].change < 1e-12


def test_only_what_is_asked_for_is_rotated() -> None:
    heads = rewrite(network("llama"), [Hadamard(residual=False)])[0].source
    stream_only = rewrite(network("llama"), [Hadamard(heads=False)])[0].source
    assert isinstance(heads, Rewritten)
    assert isinstance(stream_only, Rewritten)
    assert {f.symmetry.group for f in heads.folds} == {INVERTIBLE}
    assert {f.symmetry.group for f in stream_only.folds} == {DIAGONAL, ORTHOGONAL}


# What cannot be rotated


def test_a_tie_is_named_with_its_mend() -> None:
    with pytest.raises(InvalidTransform) as caught:
        rewrite(network("llama-tied"), ["hadamard"])
    assert "model.norm" in caught.value.happened
    assert "--with untie,hadamard" in caught.value.mend
    assert caught.value.site == space(network("llama-tied")).name


def test_a_gain_that_stays_is_named() -> None:
    with pytest.raises(InvalidTransform, match=r"input_layernorm"):
        rewrite(network("llama"), [Hadamard(fold=False)])


def test_norms_that_add_to_the_stream_leave_only_the_heads() -> None:
    _, steps = rewrite(untied("gemma2"), ["hadamard"])
    assert steps[-1].edges
    assert all("v_proj" in edge for edge in steps[-1].edges)
    with pytest.raises(InvalidTransform):
        rewrite(untied("gemma2"), [Hadamard(heads=False)])


def test_nothing_to_rotate_is_said() -> None:
    model = perturb(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)))
    with pytest.raises(InvalidTransform, match="nothing"):
        rewrite(network_of(model, {"input": torch.randn(3, 6, generator=stream(0, "x"))}), ["hadamard"])


def test_matrices_that_are_no_rotations_are_refused() -> None:
    stream_of = space(network("llama"))
    skewed = torch.eye(32, dtype=torch.float64)[None].clone()
    skewed[0, 0, 1] = 1e-6
    for matrix in (skewed, torch.ones(1, 32, 31), torch.eye(31)[None], torch.full((1, 32, 32), torch.nan)):
        with pytest.raises(InvalidTransform) as caught:
            Fold(stream_of, Transform(matrix=matrix))
        assert caught.value.site == stream_of.name


def test_a_rotation_that_moves_the_mean_is_refused_where_norms_subtract_it() -> None:
    stream_of = space(untied("opt"))
    q = random_orthogonal(32, stream(0, "q"))
    with pytest.raises(InvalidTransform, match="mean"):
        Fold(stream_of, Transform(matrix=q[None]))
    Fold(stream_of, Transform(matrix=keeping_mean(random_orthogonal(31, stream(0, "q")))[None]))


def test_sizes_without_a_hadamard_matrix() -> None:
    g = partial(stream, 0, "size")
    for n, fallback in ((12, "refuse"), (92, "random"), (92, "blocks"), (31, "random")):
        matrix = random_hadamard_or(n, g(), fallback)
        assert float((matrix @ matrix.T - torch.eye(n)).abs().max()) < 1e-13
    assert int((random_hadamard_or(92, g(), "blocks") != 0).sum()) == 92 * 4
    with pytest.raises(InvalidMethod, match="92"):
        random_hadamard_or(92, g(), "refuse")
    with pytest.raises(InvalidMethod, match="31"):
        random_hadamard_or(31, g(), "blocks")
    with pytest.raises(InvalidMethod):
        Hadamard(fallback="any")


@pytest.mark.parametrize("n", [2, 3, 8, 33])
def test_the_mean_is_kept(n: int) -> None:
    matrix, basis = keeping_mean(random_orthogonal(n - 1, stream(0, "mean"))), mean_free_basis(n)
    eye = torch.eye(n, dtype=torch.float64)
    assert float((matrix @ matrix.T - eye).abs().max()) < 1e-14 * n
    assert float((matrix.sum(-1) - 1).abs().max()) < 1e-14 * n
    assert float((basis.T @ basis - eye[1:, 1:]).abs().max()) < 1e-14 * n
    assert float(basis.sum(0).abs().max()) < 1e-14 * n


# What rotations are for


@pytest.mark.parametrize("method", ["hadamard", "random_rotation"])
def test_outliers_of_the_stream_are_spread(method: str) -> None:
    before = statistics("outliers")
    after = observe(rewrite(with_outliers(), [method])[0], [TOKENS])
    name = "model.layers.1.self_attn.q_proj:input"
    assert kurtosis(before[name].sample) > 7
    assert kurtosis(after[name].sample) < 3.5


def test_a_rotation_is_the_same_for_the_same_generator_and_another_for_another() -> None:
    def prints(method: Any, seed: int) -> list[str]:
        found, statistics_of = network("llama"), statistics("llama")
        folds = method.choose(symmetries_of(found), found.source, statistics_of, generator=stream(seed, "g"))
        return [fold.transform.fingerprint for fold in folds if fold.transform.matrix is not None]

    for method in (Hadamard(), RandomRotation(), LearnedRotation(steps=1, rows=8)):
        assert prints(method, 0) == prints(method, 0)
        assert not set(prints(method, 0)) & set(prints(method, 1))


# Learning


def objective(method: LearnedRotation) -> tuple[RotatedError, Tensor]:
    """What is minimised on the stream, and where it starts."""
    found, symmetries = with_outliers(), symmetries_of(with_outliers())
    edge, g = space(found), stream(0, "g")
    parts = rotatable(symmetries, found.source, g, method="x", residual=True, heads=False, fold=True)
    emptied = Rewritten(found.source, parts.folds)
    layers = layers_of(edge, emptied, statistics("outliers"), count=method.rows, folds=parts.folds)
    return RotatedError(edge, layers, method), drawn(edge, lambda n: random_hadamard_or(n, g, "random"))


@pytest.mark.parametrize("weight_bits", [4, 16])
def test_a_learned_rotation_starts_as_hadamard_and_ends_lower(weight_bits: int) -> None:
    method = LearnedRotation(weight_bits=weight_bits, rows=48)
    error, start = objective(method)
    learned = method.learn(start, error)
    none, before, after = (float(error(m)) for m in (torch.eye(32)[None].double(), start, learned))
    print(f"weights of {weight_bits} bits: not rotated {none:.4f}, Hadamard {before:.4f}, learned {after:.4f}")
    assert after < 0.97 * before < none
    assert float(error(replace(method, steps=0).learn(start, error))) == pytest.approx(before, rel=1e-9)
    assert float((learned @ learned.mT - torch.eye(32)).abs().max()) < 1e-12


def test_some_readers_are_whole_activations_evenly_spread() -> None:
    edge, seen = space(with_outliers()), statistics("outliers")
    few = some_readers(edge, seen, 2)
    assert few.writers == edge.writers
    groups = {activation(side): seen[activation(side)].sample for side in few.readers}
    assert len({float(sample.double().sum()) for sample in groups.values()}) == 2
    assert some_readers(edge, seen, 100).readers == edge.readers
    assert {side.port.parameter for side in few.readers} >= {f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"}


def test_the_objective_is_the_error_of_the_folded_network() -> None:
    """What is rounded in the rotated basis is what a folded network's layers read."""
    method = LearnedRotation(rows=48)
    error, _ = objective(method)
    found, _ = rewrite(with_outliers(), [LearnedRotation(steps=0, heads=False)], calibration=[TOKENS])
    source = found.source
    assert isinstance(source, Rewritten)
    layers = layers_of(error.edge, source, observe(found, [TOKENS]), count=method.rows)
    folded = RotatedError(error.edge, layers, method)(torch.eye(32, dtype=torch.float64)[None])
    assert float(folded) == pytest.approx(float(error(source.folds[-1].transform.matrix)), rel=2e-2)


def test_a_cayley_step_stays_orthogonal_and_goes_down() -> None:
    R = torch.stack([random_orthogonal(9, stream(i, "R")) for i in range(3)])
    target = torch.stack([random_orthogonal(9, stream(i, "T")) for i in range(3)])
    gaps = []
    for _ in range(200):
        gaps.append(float((R - target).square().sum()))
        R = cayley(R, 2 * (R - target), 0.2)
    assert float((R @ R.mT - torch.eye(9)).abs().max()) < 1e-12
    assert all(b < a for a, b in pairwise(gaps[:6]))
    assert gaps[-1] < 0.7 * gaps[0]
    assert float((cayley(R, 0 * R, 1.0) - R).abs().max()) < 1e-14
    bent = nearest_orthogonal(R + 1e-4)
    assert float((bent @ bent.mT - torch.eye(9)).abs().max()) < 1e-13


@pytest.mark.parametrize("name", ["outliers", "opt"])
def test_a_learned_scale_is_never_worse_than_where_it_starts(name: str) -> None:
    found = with_outliers() if name == "outliers" else network(name)
    method, seen = LearnedScale(steps=15), statistics(name)
    folds = method.choose(symmetries_of(found), found.source, seen, generator=stream(0, "g"))
    kinds = {"pair" if " x " in f.symmetry.name else "norm" if norm_of_edge(f.symmetry) else "other" for f in folds}
    assert kinds >= ({"pair", "norm", "other"} if name == "outliers" else {"norm", "other"})
    gained = []
    for fold in folds:
        if " x " in fold.symmetry.name:
            continue
        error = LayerError(layers_of(fold.symmetry, found.source, seen, count=method.rows), method)
        smooth = smoothing(largest_read(fold.symmetry, seen), largest_weight(fold.symmetry, found.source), 0.5)
        no_shift = torch.zeros(fold.symmetry.size, dtype=torch.float64) if holds_shift(fold.symmetry) else None
        start = float(error(-smooth.log(), no_shift))
        nothing = float(error(torch.zeros_like(smooth), no_shift))
        assert fold.transform.scale is not None
        end = float(error(fold.transform.scale.log(), fold.transform.shift))
        assert end <= min(start, nothing) * (1 + 1e-9)
        gained.append(end / start)
    print(f"{name}: learned over start, by edge: {sorted(round(g, 3) for g in gained)}")
    assert sum(gained) / len(gained) < 0.9


def test_rounding_of_a_row() -> None:
    x = torch.tensor([[-1.0, 0.0, 2.0], [3.0, 4.0, 6.0]], dtype=torch.float64, requires_grad=True)
    y = rounded(x, 2)
    assert y.tolist() == [[-1.0, 0.0, 2.0], [4.0, 4.0, 6.0]]
    assert rounded(x, 16) is x
    assert len(set(rounded(x.detach(), 3, whole=True).flatten().tolist())) > 3
    y.sum().backward()
    assert x.grad is not None


# At run time


@cache
def loose(name: str) -> nn.Module:
    return BY_NAME[name].model().double()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS["input_ids"], use_cache=False).logits


@pytest.mark.parametrize(("name", "sites"), [
    ("llama", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"]),
    ("gpt2", ["transformer.h.0.mlp.c_proj", "transformer.h.1.attn.c_attn"]),
])  # fmt: skip
def test_a_rotation_at_run_time_changes_nothing(name: str, sites: list[str]) -> None:
    model = loose(name)
    before = logits(model)
    seen: dict[str, Tensor] = {}

    def look(site: str, x: Tensor) -> Tensor:
        seen[site] = x
        return x

    with online(model, dict.fromkeys(sites, transform), round_inputs=look):
        after = logits(model)
        again = logits(model)
    assert float((after - before).norm() / before.norm()) < 1e-13
    assert torch.equal(after, again)
    assert set(seen) == set(sites)
    assert torch.equal(logits(model), before)


def test_queries_and_keys_turn_after_their_positions() -> None:
    model = loose("llama")
    before, keys = logits(model), []
    with online(model, {}, attention=transform, round_keys=lambda k: keys.append(k) or k):
        after = logits(model)
    assert float((after - before).norm() / before.norm()) < 1e-13
    assert len(keys) == 2


def test_rounding_hurts_less_after_a_rotation() -> None:
    model = BY_NAME["llama"].model().double()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[[5, 17]] *= 40
    before = logits(model)
    errors = {}
    for name, turn in (("none", identity), ("whole", transform), ("blocks of 4", in_blocks(4))):
        sites = {f"model.layers.{i}.mlp.down_proj": turn for i in range(2)}
        with online(model, sites, round_inputs=lambda _, x: rounded(x.flatten(0, 1), 4).reshape(x.shape)):
            errors[name] = float((logits(model) - before).norm() / before.norm())
    print(errors)
    assert errors["whole"] < 0.8 * errors["none"]


def test_what_is_not_there_or_not_reached_is_said() -> None:
    with pytest.raises(InvalidModel, match="nowhere"), online(loose("llama"), {"nowhere": transform}):
        pass
    with pytest.raises(InvalidModel, match="never seen"), online(loose("llama"), {"model.embed_tokens": transform}):
        logits(loose("llama"))
    assert rotation(space(network("llama")), torch.eye(32)[None]).matrix is not None
