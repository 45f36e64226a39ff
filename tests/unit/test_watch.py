"""One pass with every weight cut out shows what reads, what writes, and how it lies in storage."""

from __future__ import annotations

import pytest
import torch
from families import BY_NAME, FAMILIES, Perceptron
from torch import Tensor, nn

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.watch import returned, watch
from pennyweight.numerics.random import stream


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "x"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_matrix_is_cut(family):
    model = family.model()
    before = dict(model.named_parameters(remove_duplicate=False))
    seen = watch(model, family.inputs(model), grad=False)
    matrices = {name for name, p in model.named_parameters() if p.dim() > 1}
    tables = {name for name in seen.bare if name in matrices}
    assert matrices == {cut.parameter for cut in seen.cuts} | tables
    assert all("posit" in n or "token" in n or n.endswith("A_log") for n in tables), tables
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)  # the model is left as it was
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_how_a_weight_lies_in_storage():
    def ports(name: str, site: str) -> tuple[int, int]:
        family = BY_NAME[name]
        model = family.model()
        cut = next(cut for cut in watch(model, family.inputs(model), grad=False).cuts if cut.name.endswith(site))
        return cut.out_dim, cut.in_dim

    assert ports("llama", "q_proj") == (0, 1)
    assert ports("gpt2", "c_attn") == (1, 0)  # stored the other way round
    assert ports("mixtral", "gate_up_proj") == (1, 2)
    assert ports("bert", "word_embeddings") == (1, 0)
    assert ports("resnet-torch", "conv1") == (0, 1)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_experts_in_every_implementation(implementation):
    family = BY_NAME["mixtral"]
    model = family.model()
    model.config._experts_implementation = implementation
    seen = watch(model, family.inputs(model), grad=False)
    stacked = {cut.parameter: (cut.out_dim, cut.in_dim) for cut in seen.cuts if "experts" in cut.parameter}
    assert set(stacked.values()) == {(1, 2)}
    assert not seen.bare
    assert len(stacked) == 4


def test_a_bias_belongs_to_its_weight():
    seen = watch(Perceptron(torch.relu).eval(), {"x": x(2, 5, 6)})
    assert [[(p.parameter, p.kind) for p in w.ports] for w in seen.writers.values()] == [
        [("first.weight", "weight"), ("first.bias", "bias")], [("second.weight", "weight"), ("second.bias", "bias")],
    ]  # fmt: skip


def test_parts_of_one_tensor_are_told_apart():
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.after = nn.Linear(4, 10), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.both(x).contiguous().chunk(2, -1)
            return self.after(torch.sigmoid(gate) * up)

    used = set(watch(Halves().eval(), {"x": x(2, 5, 4)}).writers["both:output"].used)
    assert used == {frozenset(range(5)), frozenset(range(5, 10))}


def test_what_is_overwritten_was_read_before():
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.lin = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.lin(x)
            z = self.norm(y)
            y.mul_(0).add_(1)
            return y + z

    seen = watch(Overwrites().eval(), {"x": x(2, 5, 6)})
    assert torch.equal(seen.readers["norm:input"].tensor, seen.writers["lin:output"].tensor)


def test_weights_from_the_left_and_from_the_right():
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(7, 6))

        def forward(self, x: Tensor) -> Tensor:
            return (self.b @ (x @ self.a.T).transpose(-1, -2)).transpose(-1, -2)

    seen = watch(Products(), {"x": x(2, 5, 4)})
    assert [(cut.parameter, cut.out_dim, cut.in_dim) for cut in seen.cuts] == [("a", 0, 1), ("b", 0, 1)]
    assert seen.readers["output 0"].tensor.shape == (2, 5, 7)


def test_changed_numbers_are_read():
    model = Perceptron(torch.relu).eval()
    plain = watch(model, {"x": x(2, 5, 6)}, grad=False).readers["second:input"].tensor
    changed = watch(model, {"x": x(2, 5, 6)}, changes={"first:output": lambda v: 2 * v}, grad=False)
    assert torch.equal(changed.readers["second:input"].tensor, 2 * plain)


def test_no_channel_hides_behind_a_rectifier():
    seen = watch(Perceptron(torch.relu, 500).eval(), {"x": x(1, 2, 6)}, grad=False)
    assert bool((seen.readers["second:input"].tensor > 0).any(0).any(0).all())


def test_code_that_cannot_be_followed_is_named():
    with pytest.raises(InvalidModel, match="cannot be followed"):
        watch(Perceptron(torch.relu).eval(), {"x": x(2, 5)})


def test_states_a_model_reports_are_not_what_it_returns():
    a, b = torch.zeros(2), torch.ones(2)
    assert list(returned({"logits": a, "encoder_last_hidden_state": b})) == ["logits"]
    assert list(returned({"last_hidden_state": a, "pooler_output": b})) == ["last_hidden_state", "pooler_output"]
    assert list(returned({"last_hidden_state": a, "hidden_states": (b, b)})) == ["last_hidden_state"]
    assert list(returned((a, torch.zeros(2, dtype=torch.long), b))) == ["0", "2"]
