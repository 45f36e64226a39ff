"""Something to eat for every network, the same every time."""

from __future__ import annotations

import pytest
import torch
from families import BY_NAME, FAMILIES, Classifier, ResNet
from torch import Tensor, nn

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.inputs import example


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.given is None], ids=lambda family: family.name)
def test_every_family_eats_its_example(family):
    model = family.model()
    given = example(model, length=12)
    with torch.no_grad():
        model(**given)
    again = example(model, length=12)
    assert given.keys() == again.keys()
    tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
    assert all(torch.equal(given[name], again[name]) for name in tensors)
    assert all(given[name].shape[0] == 2 for name in tensors)


def test_which_arguments():
    def names(name: str) -> set[str]:
        return set(example(BY_NAME[name].model()))

    assert names("llama") == {"input_ids", "use_cache"}
    assert names("t5") == {"input_ids", "decoder_input_ids", "use_cache"}
    assert names("whisper") == {"input_features", "decoder_input_ids", "use_cache"}
    assert names("vit") == {"pixel_values"}
    assert names("clip") == {"input_ids", "pixel_values"}
    assert names("dit") == {"hidden_states", "timestep", "class_labels"}
    assert names("unet-condition") == {"sample", "timestep", "encoder_hidden_states"}


def test_length_and_seed():
    model = BY_NAME["llama"].model()
    assert example(model, length=5)["input_ids"].shape == (2, 5)
    assert not torch.equal(example(model)["input_ids"], example(model, seed=1)["input_ids"])


def test_plain_modules():
    assert example(ResNet())["x"].shape == (2, 3, 32, 32)
    assert example(Classifier(norm_first=True), length=7)["x"].shape == (2, 7)
    assert example(nn.Sequential(nn.Linear(5, 3)), length=7)["input"].shape == (2, 7, 5)
    assert example(nn.Conv1d(5, 3, 2))["input"].shape[:2] == (2, 5)


def test_what_cannot_be_guessed_is_asked_for():
    class Two(nn.Linear):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return super().forward(a + b)

    with pytest.raises(InvalidModel, match="pass inputs"):
        example(Two(3, 3))
    with pytest.raises(InvalidModel, match="pass inputs"):
        example(nn.ReLU())
