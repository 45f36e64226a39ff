"""Collecting statistics: the numbers of hooks on the whole model, and a killed run that goes on to the same bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import fisher as slow
from torch import Tensor, nn

from pennyweight.corpus import Windows
from pennyweight.flow import collect as room
from pennyweight.flow.collect import Collected, collect
from pennyweight.flow.journal import Journal, Spill
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network
from pennyweight.network.sources.opening import open_source

NetworkOf = Callable[[str], Network]
ModelOf = Callable[[str], nn.Module]
WindowsOf = Callable[..., Windows]


def inputs_of_every_site(network: Network, model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """What every linear layer of the blocks reads, `[tokens, in]` in float64, from hooks on transformers' own model."""
    found: dict[str, Tensor] = {}
    handles = []
    for site in network.sites:
        if site.role == "linear":

            def look(_: nn.Module, args: tuple[Any, ...], name: str = site.name) -> None:
                found[name] = args[0].flatten(0, -2).double()

            handles.append(model.get_submodule(site.name).register_forward_pre_hook(look))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3"])
def test_moments_equal_those_of_hooks(
    family: str, network_of: NetworkOf, model_of: ModelOf, windows_of: WindowsOf, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(room, "BATCH_TOKENS", 40)  # several batches, the last one smaller
    network, windows = network_of(family), windows_of(5, 20)
    collected = collect(network, windows, Journal(tmp_path), needs=frozenset({"gram"}))
    expected = inputs_of_every_site(network, model_of(family), windows.ids)
    for index in range(2):
        statistics = collected.block(index)
        sites = [site for site in network.sites if site.block == index]
        assert set(statistics) == {site.reads for site in sites}
        for site in sites:
            x, edge = expected[site.name], statistics[site.reads]
            assert edge.count == len(x) == 100
            assert edge.mean is not None
            assert edge.abs_max is not None
            scale = float((x.T @ x / len(x)).abs().max())
            torch.testing.assert_close(edge.require_gram().double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5 * scale)
            torch.testing.assert_close(edge.mean.double(), x.mean(0), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(edge.abs_max.double(), x.abs().amax(0), rtol=1e-4, atol=1e-6)
            assert torch.equal(edge.require_gram(), edge.require_gram().T)
    assert collected.fingerprint == windows.fingerprint


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_sensitivities_equal_the_float64_twin(
    family: str, network_of: NetworkOf, model_of: ModelOf, windows_of: WindowsOf, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The twin goes back through the whole model once for every token that `collect` drew."""
    drawn: list[Tensor] = []
    multinomial = torch.multinomial

    def remember(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(multinomial(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(torch, "multinomial", remember)
    monkeypatch.setattr(room, "HEAD_ROWS", 7)
    monkeypatch.setattr(room, "BATCH_TOKENS", 20)
    network, windows = network_of(family), windows_of(4, 10)
    collected = collect(network, windows, Journal(tmp_path), fisher_windows=3)
    tokens = torch.cat(drawn).reshape(3, 10)
    names = [site.name for site in network.sites if site.role == "linear"]
    expected = slow.of_samples(model_of(family), names, windows.ids[:3], tokens)
    for index in range(2):
        statistics = collected.block(index)
        for site in (site for site in network.sites if site.block == index):
            found = statistics[site.writes]
            assert found.fisher_count == 30
            twin = expected[site.name]
            torch.testing.assert_close(found.require_fisher().double(), twin, rtol=2e-3, atol=1e-4 * float(twin.max()))


def test_sensitivities_are_the_fisher_information(
    save_model: Callable[[dict[str, Any], Path], nn.Module], model_of: ModelOf, windows_of: WindowsOf, tmp_path: Path
) -> None:
    """Averaged over many draws, against the exact expectation over every token of a small vocabulary."""
    config = model_of("llama").config.to_dict() | {"vocab_size": 24}  # type: ignore[union-attr,operator]
    model = save_model(config, tmp_path / "m")
    model.get_parameter("lm_head.weight").mul_(4)  # far from uniform, so that it matters what is drawn
    model.save_pretrained(tmp_path / "m")  # type: ignore[operator]
    network = load_network(open_source(tmp_path / "m"))
    one = windows_of(1, 5, vocabulary=24)
    many = dataclasses.replace(one, ids=one.ids.expand(600, -1).contiguous(), documents=one.documents.expand(600))
    collected = collect(network, many, Journal(tmp_path / "run"), fisher_windows=600)
    names = [site.name for site in network.sites if site.role == "linear"]
    expected = slow.exact(model, names, one.ids)
    for index in range(2):
        statistics = collected.block(index)
        for site in (site for site in network.sites if site.block == index):
            ratio = statistics[site.writes].require_fisher().double() / expected[site.name]
            assert float(ratio.mean()) == pytest.approx(1, abs=0.1)
            assert float(ratio.std()) < 0.3


def test_other_seeds_draw_other_tokens(network_of: NetworkOf, windows_of: WindowsOf, tmp_path: Path) -> None:
    runs = [
        everything(collect(network_of("llama"), windows_of(2, 8), Journal(tmp_path / str(i)), seed=seed))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert any(not torch.equal(runs[0][key], runs[2][key]) for key in runs[0] if key.endswith("fisher"))
    assert all(torch.equal(runs[0][key], runs[2][key]) for key in runs[0] if key.endswith("gram"))


def everything(collected: Collected) -> dict[str, Tensor]:
    found = {}
    for index in range(len(collected.network.blocks)):
        for edge, statistics in collected.block(index).items():
            for name in ("gram", "mean", "abs_max", "fisher"):
                tensor = getattr(statistics, name)
                if tensor is not None:
                    found[f"{edge} {name}"] = tensor
            found[f"{edge} counts"] = torch.tensor([statistics.count, statistics.fisher_count])
    return found


class Killed(BaseException):
    """What SIGKILL would be, if it could be raised."""


def test_a_killed_run_goes_on_to_the_same_bits(
    network_of: NetworkOf, windows_of: WindowsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after every write and every deletion, one run for each."""
    network, windows = network_of("llama"), windows_of(3, 8)
    monkeypatch.setattr(room, "BATCH_TOKENS", 16)
    state = {"left": -1, "seen": 0}

    def mortal(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            for after in (False, True):
                if after:
                    result = original(*args, **kwargs)
                state["seen"] += 1
                if state["seen"] == state["left"]:
                    raise Killed
            return result

        return wrapped

    monkeypatch.setattr(Journal, "save_tensors", mortal(Journal.save_tensors))
    monkeypatch.setattr(Journal, "drop", mortal(Journal.drop))
    monkeypatch.setattr(Spill, "write", mortal(Spill.write))
    expected = everything(collect(network, windows, Journal(tmp_path / "whole"), fisher_windows=2))
    points = state["seen"]
    assert points > 40
    for point in range(1, points + 1):
        state.update(left=point, seen=0)
        journal = Journal(tmp_path / f"killed {point}")
        with pytest.raises(Killed):
            collect(network, windows, journal, fisher_windows=2)
        state.update(left=-1)
        found = everything(collect(network, windows, journal, fisher_windows=2))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), f"killed at {point} of {points}"


def test_nothing_but_statistics_is_left_behind(network_of: NetworkOf, windows_of: WindowsOf, tmp_path: Path) -> None:
    collect(network_of("llama"), windows_of(3, 8), Journal(tmp_path), fisher_windows=2)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    seen = {f"statistics/{kind}-{i:04d}.safetensors" for kind in ("gram", "fisher") for i in range(2)}
    assert left == {*seen, "statistics/ids.safetensors"}


def test_what_is_there_is_not_computed_again(
    network_of: NetworkOf, windows_of: WindowsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, windows = network_of("llama"), windows_of(2, 8)
    first = everything(collect(network, windows, Journal(tmp_path)))
    monkeypatch.setattr(type(network.source), "read", lambda *_: pytest.fail("a weight was read"))
    second = everything(collect(network, windows, Journal(tmp_path)))
    assert all(torch.equal(first[key], second[key]) for key in first)
