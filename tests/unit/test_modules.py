"""Any module in memory: sites found, statistics of patches and experts, a ladder certified, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import pennyweight as pw
from pennyweight.errors import (
    InvalidBudget,
    InvalidMeasurement,
    InvalidModel,
    InvalidOutput,
    UnknownName,
    VerificationFailed,
)
from pennyweight.flow.apply import Row
from pennyweight.flow.modules import store
from pennyweight.flow.modules.build import compress
from pennyweight.flow.modules.look import Seen, look
from pennyweight.flow.progress import QUIET
from pennyweight.formats import Grid
from pennyweight.methods.measurement import PythonFunction
from pennyweight.network.finding.trace import network_of
from pennyweight.network.running.reading import reading
from pennyweight.plan import Step

HIGHLY = pw.Budget.lose("cosine 0.02")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic random, of a sane size."""
    with torch.no_grad():
        for i, (_, value) in enumerate([*module.named_parameters(), *module.named_buffers()]):
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator(1000 * seed + i))
            if value.dim() < 2:
                value.add_(0.2 * noise.abs())
            else:
                value.copy_(noise * (value.shape[-1] if value.dim() == 3 else value[0].numel()) ** -0.5)
    return module.eval().requires_grad_(False)


class Depthwise(nn.Module):
    """A stem, a depthwise and a pointwise convolution, a grouped one, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.depth, self.point = nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Conv2d(32, 64, 1)
        self.grouped, self.top = nn.Conv2d(64, 64, 3, 2, 1, groups=2), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.top(F.relu(self.grouped(F.relu(self.point(F.relu(self.depth(x)))))).mean((-2, -1)))


def pictures(count: int, size: int, seed: int) -> list[dict[str, Tensor]]:
    return [{"x": x} for x in torch.randn(count * size, 3, 12, 12, generator=generator(seed)).split(size)]


def tokens(count: int, size: int, seed: int, length: int = 10) -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 96, (count * size, length), generator=generator(seed))
    return [{"input_ids": part} for part in ids.split(size)]


def of_module(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    found: Tensor = module(**batch)
    return found


def pooled(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    found: Tensor = module(**batch).last_hidden_state.mean(1)
    return found


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return random(
        BertModel(
            BertConfig(
                vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=32,
            )
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    return random(MixtralForCausalLM(config))


def rows(result: pw.CompressedModule) -> dict[str, Row]:
    return {row.site: row for row in result.ledger}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_an_encoder_is_certified_saved_and_loaded_bit_for_bit(bert: nn.Module, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in bert.named_parameters()}
    given: dict[str, Any] = {"calibration": tokens(8, 8, 1), "held_out": tokens(30, 8, 2), "outputs": pooled}
    result = pw.compress_module(bert, **given, budget=HIGHLY, embeddings=True, out=tmp_path / "small")
    claim = result.certificate.claims[0]
    assert result.holds
    assert claim.metric == "cosine"
    assert claim.estimate <= claim.bound <= 0.02
    held = torch.cat([1 - F.cosine_similarity(pooled(bert, b), pooled(result.module, b)) for b in given["held_out"]])
    assert held.mean() <= claim.bound
    assert all(torch.equal(before[name], p) for name, p in bert.named_parameters())
    # the file holds what is counted, and what is counted was planned
    assert result.bytes == result.plan.bytes < result.bytes_16_bit / 2
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert 0 < size - result.bytes < 16_000
    loaded = pw.load_compressed(random(type(bert)(bert.config), seed=5), tmp_path / "small")
    assert same(loaded, result.module)
    assert not same(loaded, bert)
    verified = pw.verify(tmp_path / "small")
    assert verified.certificate == result.certificate
    assert verified.units == claim.scored
    ledger = rows(result)
    assert ledger["embeddings.word_embeddings"].actual == "round_to_nearest int8 row sym"
    assert ledger["pooler.dense"].actual == "dense float16"
    assert "outputs do not depend" in ledger["pooler.dense"].reason
    kept = [row for row in result.ledger if row.actual.startswith("dense")]
    assert all(row.reason for row in kept)
    again = pw.compress_module(bert, **given, budget=HIGHLY, embeddings=True)
    assert again.certificate.claims == result.certificate.claims
    with pytest.raises(InvalidOutput):
        pw.save_compressed(result, tmp_path / "small")
    data = bytearray((tmp_path / "small" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "small" / "model.safetensors").write_bytes(data)
    with pytest.raises(VerificationFailed):
        pw.load_compressed(bert, tmp_path / "small")


def test_kernels_with_groups_and_a_claim_on_accuracy(tmp_path: Path) -> None:
    module = random(Depthwise())
    held_out = pictures(30, 20, 3)
    targets = torch.cat([of_module(module, batch) for batch in held_out]).argmax(-1).tolist()
    result = pw.compress_module(
        module, calibration=pictures(4, 16, 4), held_out=held_out, outputs=of_module, targets=targets,
        budget=[pw.Budget.lose("classification 8pt"), pw.Budget.lose("cosine 0.05")],
    )  # fmt: skip
    assert [claim.metric for claim in result.certificate.claims] == ["classification", "cosine"]
    assert result.holds
    ledger = rows(result)
    # few inputs of its own, the network's input, the last one that runs: 8 bits at least
    for name in ("stem", "depth", "top"):
        assert ledger[name].bits > 8
    assert "int8" in ledger["depth"].actual
    assert min(ledger[name].bits for name in ("point", "grouped")) < 8
    assert result.bytes == result.plan.bytes
    pw.save_compressed(result, tmp_path / "small")
    assert same(pw.load_compressed(Depthwise(), tmp_path / "small"), result.module)
    assert pw.verify(tmp_path / "small").certificate == result.certificate
    wrong = Depthwise()
    wrong.top = nn.Linear(64, 11)
    with pytest.raises(InvalidModel, match=r"top\.weight is"):
        pw.load_compressed(wrong, tmp_path / "small")


def test_experts_are_rounded_by_their_own_tokens_and_their_router_stays(mixtral: nn.Module, tmp_path: Path) -> None:
    def scores(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        found: Tensor = module(**batch, use_cache=False).logits.log_softmax(-1)
        return found

    def divergence(a: Tensor, b: Tensor) -> float:
        return max(0.0, float(F.kl_div(b.double(), a.double(), reduction="sum", log_target=True)) / len(a))

    result = pw.compress_module(
        mixtral, calibration=tokens(4, 8, 5), held_out=tokens(20, 8, 6), outputs=scores,
        budget=pw.Budget(metric="function", at_most=0.1, unit="absolute"),
        metrics=[PythonFunction(function=divergence)],
    )  # fmt: skip
    assert result.holds
    ledger = rows(result)
    for layer in range(2):
        place = f"model.layers.{layer}.mlp"
        assert ledger[f"{place}.gate"].actual == "dense float16"
        assert "chooses between the experts" in ledger[f"{place}.gate"].reason
        assert torch.equal(result.module.get_parameter(f"{place}.gate.weight"),
                           mixtral.get_parameter(f"{place}.gate.weight").half().float())  # fmt: skip
        for name in ("gate_up_proj", "down_proj"):
            counts = result.coverage[f"{place}.experts.{name}"]
            assert len(counts) == 4
            assert sum(counts) == 2 * 4 * 8 * 10  # two experts for every token
            assert ledger[f"{place}.experts.{name}"].actual.startswith("gptq int")
    pw.save_compressed(result, tmp_path / "small")
    assert same(pw.load_compressed(mixtral, tmp_path / "small"), result.module)
    verified = pw.verify(tmp_path / "small")
    assert verified.certificate == result.certificate
    assert "divergence" in verified.certificate.claims[0].budget.metric


def test_an_expert_that_saw_few_tokens_says_so() -> None:
    seen = Seen(torch.ones(8))
    seen.add(torch.randn(1, 40, 16, generator=generator(1)), 0, 2)
    seen.add(torch.randn(1, 3, 16, generator=generator(2)), 1, 2)
    (first, own), (second, few) = seen.statistics("x")
    assert (first.count, second.count, own, few) == (40, 3, False, True)
    assert torch.allclose(second.require_gram(), seen.grams.sum(0) / 43)  # type: ignore[union-attr]
    module = nn.Linear(16, 8, bias=False)
    site = network_of(module).sites[0]
    weight = torch.randn(8, 16, generator=generator(3))
    result, row = compress(site, weight, seen, Step.parse("gptq int4 row sym"), 0)
    assert "1 of 2 experts saw fewer tokens" in row.reason
    assert "1: 3" in row.reason
    assert result.shape == (8, 16)


@pytest.mark.parametrize("label", ["gptvq vector2 16 g8", "gptq int4 b16 sym", "gptq int4 row sym"])
def test_experts_share_what_a_format_stores_once(label: str) -> None:
    module = nn.Linear(16, 32, bias=False)
    network = network_of(module)
    (site,) = network.sites
    seen = Seen(torch.ones(32))
    for part in range(4):
        seen.add(torch.randn(1, 60 + part, 16, generator=generator(part)), part, 4)
    ((pooled, few),) = seen.statistics("x", together=True)
    assert pooled is not None
    assert (pooled.count, few) == (246, False)
    assert torch.allclose(pooled.require_gram(), seen.grams.sum(0) / 246)  # type: ignore[union-attr]
    weight = torch.randn(32, 16, generator=generator(9))
    result, row = compress(site, weight, seen, Step.parse(label), 0)
    stored = store.pack(module, {"weight": (site, result)}, "float16")
    back = store.unpack(module, stored).weight
    assert torch.equal(back, result.dequantize())
    assert row.bits == 8 * stored.bytes / weight.numel()
    assert float((back - weight).square().sum() / weight.square().sum()) < 0.3


@pytest.mark.parametrize("groups", [1, 2])
def test_gptq_on_patches_beats_rounding_to_nearest(groups: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1, groups=groups))
    random(module)
    smooth = [{"input": F.interpolate(torch.randn(8, 3, 4, 4, generator=generator(i)), size=12)} for i in range(10)]
    network = network_of(module, smooth[0])
    seen = look(module, network, smooth[:8], of_module, seed=0, progress=QUIET)
    site = network.by_name["2"]
    weight = site.matrix(module.get_parameter("2.weight")).float()
    assert seen["2.weight"].parts == groups
    errors = {}
    for method in ("gptq", "round_to_nearest"):
        result, row = compress(site, weight, seen["2.weight"], Step.parse(f"{method} int3 row sym"), 0)
        other = nn.Sequential(*module)
        other[2] = nn.Conv2d(8, 16, 3, 2, 1, groups=groups)
        other[2].bias = module[2].bias
        other[2].weight = nn.Parameter(site.restored(result.dequantize(), module[2].weight.shape), requires_grad=False)
        change = [(other(**batch) - module(**batch)).square().sum() for batch in smooth[8:]]
        errors[method] = float(sum(change))
        without = [(module(**batch) - module[2].bias[:, None, None]).square().sum() for batch in smooth[:8]]
        changed = [(other(**batch) - module(**batch)).square().sum() for batch in smooth[:8]]
        assert row.error == pytest.approx(float(sum(changed) / sum(without)), rel=0.02)  # what the ledger says is so
    assert errors["gptq"] < 0.8 * errors["round_to_nearest"]


KERNELS = {
    "plain": nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2),
    "grouped": nn.Conv2d(4, 8, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 8, (3, 1), groups=4),
    "same": nn.Conv2d(4, 8, 3, padding="same"),
    "circular": nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"),
    "one": nn.Conv1d(4, 8, 5, stride=3, padding=2, groups=2),
    "three": nn.Conv3d(4, 8, (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1)),
    "transposed": nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1, output_padding=1),
    "transposed grouped": nn.ConvTranspose1d(4, 8, 4, stride=3, padding=1, dilation=2, groups=2),
}


@pytest.mark.parametrize("kind", KERNELS)
@torch.no_grad()
def test_patches_times_the_matrix_are_the_convolution(kind: str) -> None:
    kernel = KERNELS[kind]
    dims = kernel.weight.dim() - 2
    x = torch.randn(2, 4, *[7, 6, 5][:dims], generator=generator(1))
    (site,) = network_of(kernel, {"input": x}).sites
    matrix = site.matrix(kernel.weight)
    found: list[Tensor] = []
    with reading({"weight": kernel.weight}, lambda _name, rows, _part: found.append(rows)):
        y = kernel(x)
    (read,) = found
    expected = (y - kernel.bias.reshape(-1, *[1] * dims)).movedim(1, -1).reshape(-1, y.shape[1])  # type: ignore[union-attr]
    if isinstance(kernel, nn.ConvTranspose1d | nn.ConvTranspose2d):
        made = (read[0] @ matrix.T).reshape(len(expected), -1)
    else:
        own = matrix.reshape(len(read), -1, matrix.shape[1])
        made = torch.cat([part @ weight.T for part, weight in zip(read, own, strict=True)], 1)
    assert torch.allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_experts_are_seen_whichever_way_they_are_multiplied(mixtral: nn.Module, way: str) -> None:
    mixtral.set_experts_implementation(way)  # type: ignore[operator]
    name = "model.layers.0.mlp.experts.down_proj"
    seen = Seen(torch.zeros(1))
    try:
        with torch.no_grad(), reading(
            {name: mixtral.get_parameter(name)}, lambda _, rows, part: seen.add(rows, part, 4)
        ):  # fmt: skip
            mixtral(**tokens(1, 8, 7)[0])
    finally:
        mixtral.set_experts_implementation("grouped_mm")  # type: ignore[operator]
    assert sum(seen.counts) == 2 * 8 * 10
    assert seen.grams is not None
    FOUND.setdefault("counts", torch.tensor(seen.counts))
    FOUND.setdefault("grams", seen.grams)
    assert torch.equal(torch.tensor(seen.counts), FOUND["counts"])
    assert torch.allclose(seen.grams, FOUND["grams"], atol=1e-4)


FOUND: dict[str, Tensor] = {}  # by the first way


def test_predicted_damage_is_near_what_happens() -> None:
    module = random(Depthwise())
    batches = pictures(8, 16, 11)
    seen = look(module, network_of(module, batches[0]), batches, of_module, seed=0, progress=QUIET)
    network = network_of(module, batches[0])
    site = network.by_name["point"]
    weight = site.matrix(module.point.weight)
    step = Grid(bits=3).fit(weight, search=False)
    rounded = site.restored(
        step.grid.decode(step.part(step.round(weight)).tensors, site.shape), module.point.weight.shape
    )
    predicted = 0.5 * float(
        (seen["point.weight"].sensitivity / 32) @ (rounded - module.point.weight).flatten(1).square().sum(1)
    )
    y = torch.cat([of_module(module, batch) for batch in batches])
    kept = module.point.weight.clone()
    module.point.weight.copy_(rounded)
    change = torch.cat([of_module(module, batch) for batch in batches]) - y
    module.point.weight.copy_(kept)
    happened = 0.5 * float(change.square().sum() / y.square().sum())
    assert 0.3 < predicted / happened < 3


def test_outputs_that_cannot_be_differentiated(bert: nn.Module) -> None:
    def listed(module: nn.Module, batch: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return pooled(module, batch).numpy()

    result = pw.compress_module(
        bert, calibration=tokens(4, 8, 1), held_out=tokens(10, 8, 2), outputs=listed, budget=HIGHLY, bits=(4, 8)
    )
    assert result.holds
    assert {row.actual.split()[1] for row in result.ledger if row.actual.startswith("gptq")} <= {"int4", "int8"}


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_bad_input_is_refused(bert: nn.Module) -> None:
    calibration, held_out = tokens(2, 8, 1), tokens(10, 8, 2)
    given: dict[str, Any] = {"calibration": calibration, "held_out": held_out, "outputs": pooled, "budget": HIGHLY}

    def refused(error: type[Exception], words: str, module: nn.Module = bert, **changes: Any) -> None:
        with pytest.raises(error, match=words):
            pw.compress_module(module, **{**given, **changes})

    refused(InvalidMeasurement, "batch 1 of the held-out data is batch 0", held_out=[held_out[0], calibration[0]])
    mixed = torch.cat([held_out[0]["input_ids"][:4], calibration[1]["input_ids"][3:4]])
    refused(InvalidMeasurement, "row 4 of batch 0 of the held-out data is row 3 of batch 1",
            held_out=[{"input_ids": mixed}, *held_out[1:]])  # fmt: skip
    refused(InvalidMeasurement, "NaN or infinite", outputs=lambda m, b: pooled(m, b) / 0)
    refused(InvalidMeasurement, "8 held-out items", held_out=held_out[:1])
    refused(InvalidMeasurement, "not a list of batches", calibration=calibration[0])
    refused(InvalidMeasurement, "nothing for each item", outputs=lambda m, b: pooled(m, b).mean())
    refused(InvalidMeasurement, "3 targets for 80 items", targets=[0, 1, 2])
    refused(InvalidBudget, "not measured on outputs", budget=pw.Budget.lose("2%"))
    refused(InvalidBudget, "not measured on outputs", budget=pw.Budget.fit("1MB"))
    refused(UnknownName, "no method", budget=pw.Budget.lose("cosinus 0.1"))
    ones = [{"x": torch.randn(8, 4, generator=generator(i))} for i in range(12)]
    refused(
        InvalidModel, "multiplies by no weight", Nothing(), calibration=ones[:2], held_out=ones[2:], outputs=of_module
    )
    refused(InvalidModel, "nothing in this module can be compressed", nn.Sequential(nn.Embedding(96, 8)),
            calibration=[{"input": b["input_ids"]} for b in calibration], outputs=of_module,
            held_out=[{"input": b["input_ids"]} for b in held_out])  # fmt: skip
