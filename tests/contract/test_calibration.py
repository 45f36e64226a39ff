"""Every way to make calibration inputs against the contract of its room: seeds, shares, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pennyweight import catalogue
from pennyweight.errors import InvalidMethod
from pennyweight.methods.calibration import BoxBlur, GaussianNoise, LowContrast, OtherText, TokenNoise
from pennyweight.numerics.random import stream

METHODS = catalogue.classes("calibration")
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)


def pool(kind: type[Any], seed: int = 0, count: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind.reads == "images":
        return torch.rand(count, 3, 16, 12, generator=generator)
    assert kind.reads == "tokens"
    return torch.randint(0, 5000, (count, 64), generator=generator)


def model(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The next token is likely a few numbers on; tokens go to experts by their number."""
    distance = (torch.arange(500) - 7 * ids[:, -1:]) % 500
    routed = torch.nn.functional.one_hot(ids % 4, 4).sum(1, keepdim=True).float()
    return (-distance.float()).log_softmax(-1), routed


def run(method: Any, inputs: Tensor, seed: int = 0) -> Tensor:
    more = {"model": model} if "model" in method.needs else {}
    other = pool(type(method), 99, 30)
    found: Tensor = method.degrade(inputs, generator=stream(seed, method.name), other=other, **more)
    return found


def changed(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).flatten(1).any(1)


@every_method
def test_a_share_of_the_inputs_is_changed_and_the_others_stay(kind: type[Any]) -> None:
    inputs = pool(kind)
    for share in (0.0, 0.25, 0.5, 1.0):
        after = run(kind(share=share), inputs)
        assert after.shape == inputs.shape
        assert after.dtype == inputs.dtype
        assert int(changed(inputs, after).sum()) == round(share * 20)


@every_method
def test_a_seed_gives_the_same_inputs_and_another_gives_others(kind: type[Any]) -> None:
    inputs = pool(kind)
    copy = inputs.clone()
    assert torch.equal(run(kind(), inputs, 1), run(kind(), inputs, 1))
    assert not torch.equal(run(kind(), inputs, 1), run(kind(), inputs, 2))
    assert torch.equal(inputs, copy), "the pool is not written to"


@every_method
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(kind: type[Any], share: float) -> None:
    with pytest.raises(InvalidMethod, match="share"):
        kind(share=share)


def test_noise_has_the_strength_it_says() -> None:
    images = torch.zeros(200, 1, 32, 32)
    noise = run(GaussianNoise(share=1, weakest=0.1, strongest=0.3), images)
    strengths = noise.flatten(1).std(1)
    assert 0.09 < float(strengths.min()) < 0.13
    assert 0.27 < float(strengths.max()) < 0.33
    assert float(strengths.mean()) == pytest.approx(0.2, abs=0.01)


def test_blur_is_a_mean_and_keeps_what_is_even() -> None:
    images = torch.full((4, 2, 9, 9), 0.3)
    torch.testing.assert_close(run(BoxBlur(share=1), images), images)
    images[:, :, 4, 4] += 9.0
    blurred = run(BoxBlur(share=1, sizes=(3,)), images)
    torch.testing.assert_close(blurred[:, :, 3:6, 3:6], torch.full((4, 2, 3, 3), 1.3))
    torch.testing.assert_close(blurred[:, :, 0], images[:, :, 0])


def test_contrast_shrinks_about_the_mean() -> None:
    images = pool(LowContrast)
    after = run(LowContrast(share=1, least=0.5, most=0.5), images)
    torch.testing.assert_close(after.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(after.flatten(1).std(1), images.flatten(1).std(1) / 2)


def test_noisy_text_is_made_of_the_same_tokens() -> None:
    windows = pool(TokenNoise, 3, 200)
    after = run(TokenNoise(share=1, tokens=0.2), windows)
    assert set(after.flatten().tolist()) <= set(windows.flatten().tolist())
    assert float((after != windows).double().mean()) == pytest.approx(0.2, abs=0.01)


def test_windows_of_another_text_come_once_each() -> None:
    windows, other = pool(OtherText, 0, 20), pool(OtherText, 1, 12)
    after = OtherText(share=0.5).degrade(windows, generator=stream(0, "test"), other=other)
    taken = [tuple(row) for row in after[changed(windows, after)].tolist()]
    assert len(set(taken)) == 10
    assert set(taken) <= {tuple(row) for row in other.tolist()}
    for wrong in (None, other[:9], other[:, :50]):
        with pytest.raises(InvalidMethod, match="10 windows of 64"):
            OtherText(share=0.5).degrade(windows, generator=stream(0, "test"), other=wrong)


@pytest.mark.parametrize("spec", ["gaussian_noise(weakest=0)", "gaussian_noise(weakest=1, strongest=0.5)",
                                  "box_blur(sizes=(4,))", "box_blur(sizes=())", "low_contrast(least=0)",
                                  "low_contrast(most=1.5)", "token_noise(tokens=2)", "expert_balanced(beams=0)",
                                  "expert_balanced(temperature=0)"])  # fmt: skip
def test_parameters_outside_their_range(spec: str) -> None:
    with pytest.raises(InvalidMethod):
        catalogue.find(spec)


def test_images_smaller_than_a_square_are_refused() -> None:
    with pytest.raises(InvalidMethod, match="16 x 12"):
        run(BoxBlur(sizes=(25,)), pool(BoxBlur))
