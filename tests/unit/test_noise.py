from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement
from pennyweight.flow.certifying import noise
from pennyweight.flow.certifying.noise import measure_noise, noise_floor
from pennyweight.flow.journal import Journal
from pennyweight.flow.measure import token_metrics
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network
from pennyweight.network.running.stream import Stream
from pennyweight.network.sources.opening import open_source

Networks = Callable[[str], Network]
MakeWindows = Callable[..., Windows]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_model_is_close_to_itself_and_not_exactly_itself(
    network_of: Networks, windows_of: MakeWindows, family: str
) -> None:
    threads = torch.get_num_threads()
    found = measure_noise(network_of(family), windows_of(4, 24))
    assert torch.get_num_threads() == threads
    assert set(found.by_variant) == {"batch", "threads", "bfloat16"}
    assert found.floor.keys() == {metric.name for metric in token_metrics()}
    assert 0 < found.floor["kl"] < 0.05
    assert found.floor["kl"] == found.by_variant["bfloat16"]["kl"]
    for variant in ("batch", "threads"):  # float32 sums in another order
        assert all(abs(value) < 1e-4 for value in found.by_variant[variant].values())
    assert found.floor["perplexity"] == max(abs(scores["perplexity"]) for scores in found.by_variant.values())


def test_the_16_bit_variant_is_the_model_in_that_dtype(network_of: Networks, windows_of: MakeWindows) -> None:
    network, windows = network_of("llama"), windows_of(2, 16)
    usual, rounded = Stream(network), Stream(network, dtype=torch.bfloat16)
    before, after = usual.forward(windows.ids), rounded.forward(windows.ids)
    assert after.dtype == torch.bfloat16
    with torch.no_grad(), usual.end() as finish, rounded.end() as finish_rounded:
        p = finish(before.flatten(0, 1)).double().log_softmax(-1).unflatten(0, (2, 16))[:, :-1]
        q = finish_rounded(after.flatten(0, 1)).double().log_softmax(-1).unflatten(0, (2, 16))[:, :-1]
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert measure_noise(network, windows).by_variant["bfloat16"]["kl"] == pytest.approx(expected, rel=1e-3)


def half(model_directory: Path, out: Path, change: Callable[[Any], None]) -> Network:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory).half().requires_grad_(False)
    change(model)
    model.save_pretrained(out)
    return load_network(open_source(out))


def test_float16_where_the_file_is_and_bfloat16_where_it_overflows(
    llama_directory: Path, windows_of: MakeWindows, tmp_path: Path
) -> None:
    windows = windows_of(2, 16)
    small = half(llama_directory, tmp_path / "small", lambda model: None)
    assert "float16" in measure_noise(small, windows).by_variant
    large = half(llama_directory, tmp_path / "large", lambda model: model.model.layers[0].mlp.up_proj.weight.mul_(6e4))
    found = measure_noise(large, windows)
    assert set(found.by_variant) == {"batch", "threads", "bfloat16"}
    assert all(abs(value) < torch.inf for value in found.floor.values())


def test_it_is_measured_once_a_run(
    network_of: Networks, windows_of: MakeWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, windows = Journal(tmp_path), windows_of(10, 16)
    first = noise_floor(network_of("llama"), windows, journal, count=2)
    assert journal.load("noise-floor.json")["windows"] == 2
    monkeypatch.setattr(noise, "_measure", lambda *_: pytest.fail("measured again"))
    assert noise_floor(network_of("llama"), windows, journal, count=2) == first


def test_the_thread_count_comes_back_after_an_error(
    network_of: Networks, windows_of: MakeWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    forward = Stream.forward

    def fails_with_other_threads(self: Stream, ids: torch.Tensor) -> torch.Tensor:
        if torch.get_num_threads() != threads:
            raise RuntimeError("out of luck")
        return forward(self, ids)

    monkeypatch.setattr(Stream, "forward", fails_with_other_threads)
    with pytest.raises(RuntimeError, match="luck"):
        measure_noise(network_of("llama"), windows_of(2, 16))
    assert torch.get_num_threads() == threads


def test_no_windows_show_no_noise(network_of: Networks, windows_of: MakeWindows) -> None:
    windows = windows_of(2, 16)
    for ids in (windows.ids[:0], windows.ids[:, :1]):
        with pytest.raises(InvalidMeasurement, match="no noise"):
            measure_noise(network_of("llama"), replace(windows, ids=ids))
