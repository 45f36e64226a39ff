"""Bad input: one clear error, exit code 2, no traceback, and nothing left where the output was to be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from end_to_end import world
from safetensors.torch import load_file, save_file

from pennyweight.cli import main
from pennyweight.flow.delivery import Outcome
from pennyweight.plan import Plan

FORM = re.compile(r"(\w+): ([^\n]+?): ([^\n]+)\n  expected: ([^\n]+)\n  mend:     ([^\n]+)\n")
WORK = ["checking weights", "collecting", "measuring", "predicting", "compressing", "writing", "certifying"]
MOST = ["--max-windows", "20"]
UNITS = ["--max-units", "20"]


class Refused:
    """The parts of the one error a command ended with."""

    def __init__(self, text: str) -> None:
        match = FORM.fullmatch(text)
        assert match, text
        self.name, self.site, self.happened, self.expected, self.mend = match.groups()


Refuse = Callable[..., Refused]


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command that has to be refused; `before` has to be all there is afterwards."""

    def call(*arguments: str | Path) -> Refused:
        before = world.hashes(tmp_path)
        folders = {path for path in tmp_path.rglob("*") if path.is_dir()}
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capfd.readouterr()
        assert out == ""
        assert code == 2, err
        assert world.hashes(tmp_path) == before, "nothing is written, nothing is lost"
        assert {path for path in tmp_path.rglob("*") if path.is_dir()} == folders
        return Refused(err)

    return call


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy, to damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.fixture
def compress(refused: Refuse, text: Path, tmp_path: Path) -> Refuse:
    """Compress a model, badly."""

    def call(
        model: Path | str, *options: str | Path, budget: tuple[str, ...] = ("--lose", "3%"), on: Path | None = None
    ) -> Refused:
        out = ["--out", tmp_path / "small"] if "--out" not in options else []
        return refused("compress", model, *out, *budget, "--calibration", on or text, *world.OPTIONS, *options)

    return call


# The model


def test_no_such_directory(compress: Refuse, tmp_path: Path) -> None:
    error = compress(tmp_path / "nowhere")
    assert error.name == "MissingFile"
    assert error.site == str(tmp_path / "nowhere")


def test_empty_directory(compress: Refuse, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert compress(tmp_path / "empty").name == "MissingFile"


def test_a_file_that_is_no_model(compress: Refuse, text: Path) -> None:
    assert compress(text).name == "InvalidModel"


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.3, 0.999])
def test_truncated_weights(share: float, compress: Refuse, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    error = compress(model)
    assert error.name == "CorruptFile"
    assert "model.safetensors" in error.site


def test_weights_that_hold_no_tensor(compress: Refuse, model: Path) -> None:
    save_file({}, model / "model.safetensors")
    assert compress(model).name == "InvalidModel"


def test_missing_tensor(compress: Refuse, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors")
    error = compress(model)
    assert error.name == "InvalidModel"
    assert "model.layers.1.mlp.up_proj.weight" in error.happened


def test_missing_shard(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(sharded, max_shard_size="200KB")
    shutil.copy(llama / "tokenizer.json", sharded)
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    error = compress(sharded)
    assert error.name == "MissingFile"
    assert gone.name in error.happened


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
)
def test_weights_that_are_no_numbers(value: float, name: str, compress: Refuse, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, model / "model.safetensors")
    error = compress(model)
    assert error.name == "InvalidWeights"
    assert error.site == name


@pytest.mark.parametrize("verb", ["measure", "plan"])
def test_weights_that_are_no_numbers_elsewhere(verb: str, refused: Refuse, model: Path, text: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(tensors, model / "model.safetensors")
    arguments = {
        "measure": ["measure", model, model, "--on", text, "--length", "32", "--quiet", *UNITS],
        "plan": ["plan", model, "--lose", "2%", "--calibration", text, *world.OPTIONS],
    }[verb]
    assert refused(*arguments).name == "InvalidWeights"


def test_weights_too_large_for_the_type(compress: Refuse, model: Path) -> None:
    """1e6 is finite, but not in float16, where the rest of the model goes: refused before hours of work."""
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, model / "model.safetensors")
    error = compress(model)
    assert error.name in ("InvalidFormat", "InvalidWeights")
    assert error.site == "model.norm.weight"


def change_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_unknown_architecture(compress: Refuse, model: Path) -> None:
    change_config(model, model_type="pennyfarthing", architectures=["PennyfarthingForCausalLM"])
    error = compress(model)
    assert error.name == "InvalidModel"
    assert "pennyfarthing" in error.happened


@pytest.mark.parametrize("model_type", ["vit", "t5"])
def test_an_architecture_that_is_no_causal_language_model(model_type: str, compress: Refuse, model: Path) -> None:
    change_config(model, model_type=model_type)
    assert compress(model).name == "InvalidModel"


def test_a_configuration_without_type(compress: Refuse, model: Path) -> None:
    (model / "config.json").write_text("{}")
    assert compress(model).name == "InvalidModel"


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_configuration_that_is_none(content: str, compress: Refuse, model: Path) -> None:
    (model / "config.json").write_text(content)
    assert compress(model).name == "CorruptFile"


def test_a_configuration_of_another_model(compress: Refuse, model: Path) -> None:
    change_config(model, hidden_size=96)
    assert compress(model).name == "InvalidModel"


def test_no_tokenizer(compress: Refuse, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    error = compress(model)
    assert error.name == "InvalidModel"
    assert "tokenizer" in error.happened


def test_a_damaged_tokenizer(compress: Refuse, model: Path) -> None:
    (model / "tokenizer.json").write_text('{"model": 1')
    assert compress(model).name == "CorruptFile"


def test_a_tokenizer_with_more_tokens_than_the_model(compress: Refuse, model: Path) -> None:
    """Token ids beyond the embedding table: an IndexError deep in the work, if nobody looks before."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"] = 300
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    error = compress(model)
    assert "300" in error.happened


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", "gpt2"])
def test_a_hub_name_without_leave(name: str, compress: Refuse) -> None:
    error = compress(name)
    assert error.name == "MissingFile"
    assert "--allow-network" in error.mend


def test_a_damaged_gguf_file(compress: Refuse, gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_file.read_bytes()[:5000])
    assert compress(tmp_path / "m.gguf").name == "CorruptFile"
    (tmp_path / "m.gguf").write_bytes(b"")
    assert compress(tmp_path / "m.gguf").name == "CorruptFile"


# The text


def test_text_too_short(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    short = world.write_text(tmp_path / "short.txt", [part[:200] for part in world.documents(6, 1, seed=9)])
    error = compress(llama, on=short)
    assert error.name == "InvalidText"
    assert re.search(r"needs \d+ windows of 32 tokens", error.happened)
    assert re.search(r"\d+ tokens, about \d+ kB", error.expected), "it says how much is needed"


def test_one_document(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Only one sentence.")
    assert compress(llama, on=tmp_path / "one.txt").name == "InvalidText"


def test_a_text_as_long_as_it_says_is_enough(
    compress: Refuse, llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = [part[:150] for part in world.documents(9, 1, seed=9)]
    error = compress(llama, on=world.write_text(tmp_path / "short.txt", parts))
    needed = int(re.search(r"(\d+) tokens, about", error.expected)[1])  # type: ignore[index]
    longer = world.documents(12, 1, seed=9)
    assert sum(map(len, longer)) * 0.15 > needed
    enough = world.write_text(tmp_path / "enough.txt", longer)
    out = str(tmp_path / "small")
    code = main(
        ["compress", str(llama), "--out", out, "--bits", "5", "--calibration", str(enough), *world.OPTIONS, *MOST]
    )
    assert code == 0, capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b" \n\t \n", b"\x0c\x0c"])
def test_empty_text(content: bytes, compress: Refuse, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(content)
    assert compress(llama, on=tmp_path / "empty.txt").name == "InvalidText"


def test_no_text(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    assert compress(llama, on=tmp_path / "nothing.txt").name == "MissingFile"


def test_binary_text(compress: Refuse, llama: Path) -> None:
    error = compress(llama, on=llama / "model.safetensors")
    assert error.name == "InvalidText"
    assert "binary" in error.happened


def test_text_that_is_not_utf8(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Vögel singen. ".encode("latin-1") * 9999)
    error = compress(llama, on=tmp_path / "latin.txt")
    assert error.name == "InvalidText"
    assert "offset 1" in error.happened


def test_overlapping_texts(compress: Refuse, llama: Path, parts: list[str], tmp_path: Path) -> None:
    held = world.write_text(tmp_path / "held.txt", [*world.documents(40, 3, seed=4), parts[7]])
    error = compress(llama, "--held-out", held)
    assert error.name == "InvalidText"
    assert "held-out" in error.site


def test_the_same_text_twice(compress: Refuse, llama: Path, text: Path) -> None:
    assert compress(llama, "--held-out", text).name == "InvalidText"


def test_partly_copied_text(compress: Refuse, llama: Path, parts: list[str], tmp_path: Path) -> None:
    mixed = [b + a[:1500] for a, b in zip(parts[:40], world.documents(40, 3, seed=4), strict=True)]
    error = compress(llama, "--held-out", world.write_text(tmp_path / "held.txt", mixed))
    assert error.name == "InvalidText"


# The budget


@pytest.mark.parametrize(
    "budget",
    [
        ("--lose", "-1%"), ("--lose", "-0.5"), ("--lose", "0"), ("--lose", "0%"), ("--lose", "abc"), ("--lose", ""),
        ("--lose", "2 percent"), ("--lose", "nan"), ("--lose", "1e999"), ("--lose=-1%",), ("--fit", "-3MB"),
        ("--fit", "0"), ("--fit", "3 parsecs"), ("--fit", "MB"), ("--fit", "1e999GB"), ("--fit", "0.001"),
        ("--bits", "0"),
        ("--bits", "-4"), ("--bits", "nan"), ("--bits", "inf"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_budget_that_means_nothing(budget: tuple[str, ...], compress: Refuse, llama: Path) -> None:
    assert compress(llama, budget=budget).name == "InvalidBudget"


@pytest.mark.parametrize("budget", [("--fit", "1KB"), ("--bits", "0.5")])
def test_a_budget_that_nothing_meets(budget: tuple[str, ...], compress: Refuse, llama: Path) -> None:
    error = compress(llama, budget=budget)
    assert error.name == "InfeasibleBudget"
    assert error.mend.startswith(budget[0])


def test_no_budget(compress: Refuse, refused: Refuse, llama: Path, text: Path) -> None:
    for error in (compress(llama, budget=()), refused("plan", llama, "--calibration", text)):
        assert error.name == "InvalidBudget"
        assert "--lose" in error.expected


@pytest.mark.parametrize("confidence", ["1.5", "1", "0", "-0.2", "nan"])
def test_confidence(confidence: str, compress: Refuse, llama: Path) -> None:
    assert compress(llama, f"--confidence={confidence}").name == "InvalidBudget"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--bits", "four"), ("--length", "0"), ("--length", "1"), ("--length", "-3"), ("--length", "x"),
        ("--max-windows", "0"), ("--max-windows", "-1"), ("--threads", "0"), ("--threads", "-2"), ("--seed", "x"),
        ("--calibration-windows", "0"), ("--selection-windows", "0"), ("--dtype", "int8"),
        ("--fit", "1MB", "--bits", "4"),
        ("--colour", "red"), ("another",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_arguments(arguments: tuple[str, ...], compress: Refuse, llama: Path) -> None:
    error = compress(llama, *arguments)
    assert error.name == "InvalidArguments"
    if arguments[0] != "another":
        assert arguments[0] in error.site + error.happened


def test_a_quantizer_that_writes_no_grids(compress: Refuse, llama: Path) -> None:
    error = compress(llama, "--method", "hqq")
    assert error.name == "InvalidMethod"
    assert "writes Affine" in error.happened
    assert "gptq" in error.expected


@pytest.mark.parametrize(
    "arguments", [(), ("compres",), ("compress",), ("plan",), ("certify", "a", "b"), ("verify",)], ids=" ".join
)
def test_verbs(arguments: tuple[str, ...], refused: Refuse) -> None:
    assert refused(*arguments).name == "InvalidArguments"


# The output


def test_output_not_empty(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.tex").write_text("the only copy")
    error = compress(llama)
    assert error.name == "InvalidOutput"
    assert "not empty" in error.happened


def test_output_is_a_file(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "small").write_text("a file")
    assert compress(llama).name == "InvalidOutput"


def test_output_below_a_file(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    assert compress(llama, "--out", tmp_path / "file" / "small").name == "InvalidOutput"


@pytest.mark.parametrize("out", [".", "..", "/", "model"])
def test_output_that_is_taken(
    out: str, compress: Refuse, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_text("a file")
    monkeypatch.chdir(tmp_path / "inside" if out != "model" else tmp_path)
    assert compress(model, "--out", out).name == "InvalidOutput"


def test_output_that_cannot_be_written(compress: Refuse, llama: Path) -> None:
    assert compress(llama, "--out", "/proc/small").name == "InvalidOutput"


def test_the_run_is_a_file(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "small.run").write_text("a file")
    assert compress(llama).name == "InvalidOutput"


@pytest.mark.parametrize("name", ["missing/plan.toml", "folder"])
def test_a_plan_that_cannot_be_written(name: str, refused: Refuse, llama: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    error = refused("plan", llama, "--bits", "5", "--calibration", text, *world.OPTIONS, "-o", tmp_path / name)
    assert error.name == "InvalidOutput"


def test_a_report_that_cannot_be_written(refused: Refuse, outcome: Outcome, tmp_path: Path) -> None:
    assert refused("report", outcome.out, "-o", tmp_path / "missing" / "page.html").name == "InvalidOutput"


# The plan


@pytest.fixture
def with_plan(compress: Refuse, outcome: Outcome, llama: Path, tmp_path: Path) -> Refuse:
    """Compress with an edited copy of the plan that was carried out."""

    def call(edit: Callable[[str], str], model: Path = llama, plan: Path = outcome.out) -> Refused:
        before = (plan / "pennyweight" / "plan.toml").read_text()
        assert edit(before) != before or model != llama
        (tmp_path / "plan.toml").write_text(edit(before))
        return compress(model, "--plan", tmp_path / "plan.toml", budget=())

    return call


SITE = "model.layers.1.mlp.down_proj"


def step(text: str, label: str, site: str = SITE) -> str:
    changed, count = re.subn(rf'(\[steps\."{re.escape(site)}"\]\nstep = )"[^"]*"', lambda m: f'{m[1]}"{label}"', text)
    assert count == 1
    return changed


def test_a_plan_for_another_model(with_plan: Refuse, wide: Path) -> None:
    error = with_plan(lambda text: text, wide)
    assert error.name == "InvalidPlan"
    assert "another model" in error.happened


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("gptqq int4 g32 sym", "gptqq"), ("gptq int4 g48 sym", "48"), ("gptq int4 g33 sym", "33"),
        ("gptq int9 g32 sym", "9"), ("gptq int1 g32 sym", "1"), ("gptq int4 g0 sym", "0"), ("gptq", "gptq"),
        ("", ""), ("gptq float9", "float9"), ("gptq(damping=x) int4 g32 sym", "damping"),
        ("gptq(damping=-1) int4 g32 sym", "damping"), ("gptq(nonsense=1) int4 g32 sym", "nonsense"),
        ("gptq(damping=0.02 int4 g32 sym", "gptq"), ("gptq int4 g32 sym + gptq int4 g32 sym", "stage"),
        ("gptq float16", "grid"), ("gptq int4 g32 sym bfloat16", "bfloat16"), ("gptq int4 g32 asym", "zero points"),
    ],
)  # fmt: skip
def test_a_step_that_cannot_be_carried_out(label: str, words: str, with_plan: Refuse) -> None:
    error = with_plan(lambda text: step(text, label))
    assert error.name in ("InvalidPlan", "InvalidFormat", "InvalidMethod", "UnknownName")
    assert words in error.happened + error.site
    if label != "gptq int9 g32 sym":
        assert SITE in error.site + error.happened or "plan.toml" in error.site, "it says which line to mend"


def test_an_unknown_site(with_plan: Refuse) -> None:
    error = with_plan(lambda text: text.replace(SITE, "model.layers.1.mlp.down_prj"))
    assert error.name == "InvalidPlan"
    assert error.site == "model.layers.1.mlp.down_prj"


def test_fused_sites_that_disagree(with_plan: Refuse, for_vllm: Outcome, wide: Path) -> None:
    plan = Plan.from_toml((for_vllm.out / "pennyweight" / "plan.toml").read_text())
    site = "model.layers.0.mlp.up_proj"
    bits = 8 if plan.formats()[site].bits == 4 else 4
    label = f"gptq int{bits} {'row' if bits == 8 else 'g64'} sym"
    error = with_plan(lambda text: step(text, label, site), wide, for_vllm.out)
    assert error.name == "InvalidPlan"
    assert "model.layers.0.mlp.gate_proj" in error.happened


def test_the_head_for_an_engine_that_needs_it_dense(with_plan: Refuse, for_vllm: Outcome, wide: Path) -> None:
    row = '\n[steps.lm_head]\nstep = "gptq int4 g64 sym"\n\n[kept]'
    error = with_plan(lambda text: text.replace("\n[kept]", row), wide, for_vllm.out)
    assert error.name == "InvalidPlan"
    assert error.site == "lm_head"


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[plan", lambda text: "steps = 3",
        lambda text: text.replace("[plan]", "[plam]"), lambda text: text.replace('engine = "', 'motor = "'),
        lambda text: re.sub(r"seed = \d+", 'seed = "x"', text), lambda text: re.sub(r"seed = \d+", "seed = []", text),
        lambda text: "[steps]\n" + "plan = 1", lambda text: text.replace("step = ", "stp = ", 1),
        lambda text: "kept = 3\n" + text.replace("[kept]", "[others]"), lambda text: '[kept]\nx = 1\nx = 2\n' + text,
    ],
    ids=range(12),
)  # fmt: skip
def test_a_damaged_plan(edit: Callable[[str], str], with_plan: Refuse) -> None:
    assert with_plan(edit).name == "InvalidPlan"


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda text: text.replace('engine = "transformers"', 'engine = "transfomers"'), "UnknownName"),
        (lambda text: text.replace('dtype = "float16"', 'dtype = "float17"'), "InvalidFormat"),
    ],
)
def test_a_plan_for_nobody(edit: Callable[[str], str], name: str, with_plan: Refuse) -> None:
    assert with_plan(edit).name == name


def test_no_plan(compress: Refuse, llama: Path, tmp_path: Path) -> None:
    error = compress(llama, "--plan", tmp_path / "nothing.toml", budget=())
    assert error.name == "MissingFile"
    assert error.site == str(tmp_path / "nothing.toml")


def test_a_plan_that_is_no_text(compress: Refuse, llama: Path) -> None:
    assert compress(llama, "--plan", llama / "model.safetensors", budget=()).name == "InvalidPlan"
    assert compress(llama, "--plan", llama, budget=()).name == "InvalidPlan"


# Names


@pytest.mark.parametrize(
    ("options", "near"),
    [(("--for", "vlm"), "vllm"), (("--method", "gptk"), "gptq"), (("--allocation", "uniformly"), "uniform")],
)
@pytest.mark.parametrize("verb", ["compress", "plan"])
def test_unknown_names(
    verb: str, options: tuple[str, str], near: str, refused: Refuse, llama: Path, text: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "small"] if verb == "compress" else []
    error = refused(verb, llama, *out, "--lose", "3%", "--calibration", text, *world.OPTIONS, *options)
    assert error.name == "UnknownName"
    assert options[1] in error.happened
    assert near in error.mend


def test_a_dtype_the_engine_refuses(compress: Refuse, wide: Path) -> None:
    error = compress(wide, "--for", "vllm", "--dtype", "float32")
    assert "float32" in error.happened


# Artifacts


def test_verify_what_is_none(refused: Refuse, llama: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", llama, llama / "config.json"):
        assert refused("verify", place).name == "VerificationFailed"


def test_verify_what_was_edited(refused: Refuse, artifact: Path) -> None:
    path = artifact / "pennyweight" / "certificate.json"
    path.write_text(path.read_text().replace("certified", "cretified"))
    error = refused("verify", artifact)
    assert error.name == "VerificationFailed"


def test_report_of_what_is_none(refused: Refuse, llama: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", llama):
        assert refused("report", place).name == "VerificationFailed"


def test_measure_a_damaged_artifact(refused: Refuse, llama: Path, artifact: Path, text: Path) -> None:
    path = artifact / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert refused("measure", llama, artifact, "--on", text, "--length", "32", "--quiet").name == "CorruptFile"


def test_measure_models_that_do_not_compare(
    refused: Refuse, llama: Path, save_model: Callable[..., object], text: Path, tmp_path: Path
) -> None:
    """Other vocabularies: token ids of the one mean nothing to the other."""
    config = json.loads((llama / "config.json").read_text())
    save_model({**config, "vocab_size": 200}, tmp_path / "other")
    assert torch.get_num_threads() == 1
    error = refused("measure", llama, tmp_path / "other", "--on", text, "--length", "32", "--quiet", *UNITS)
    assert "vocabular" in error.happened


# Certificates for models that others made


@pytest.fixture
def certify(refused: Refuse, llama: Path, outcome: Outcome, text: Path, tmp_path: Path) -> Refuse:
    """Certify the artifact against its model, badly; refused before a window of the claim is scored."""

    def call(
        *lose: str, options: tuple[str | Path, ...] = (), on: Path | None = text, model: Path = llama,
        other: Path | None = None,
    ) -> Refused:  # fmt: skip
        out = [] if "--out" in options else ["--out", tmp_path / "small"]
        limits = [part for limit in lose for part in ("--lose", limit)]
        where = [] if on is None else ["--on", on]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pennyweight.flow.certifying.pair.judge_population", never)
            return refused(
                "certify", model, other or outcome.out, *limits, *where, *out, "--length", "32", "--quiet", *options
            )

    return call


def never(*_: object, **__: object) -> None:
    raise AssertionError("what is refused is refused before the claim's own units are scored")


def lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    asked = [{"question": f"ka {i}", "choices": ["mi", "ren"], "answer": "mi"} for i in range(30)]
    return lines(tmp_path / "quiz.jsonl", *asked)


@pytest.mark.parametrize(
    "limit", ["kl 0", "kl -0.1", "kl nan", "tv 0%", "tv 100%", "kl 2%", "agreement 5 parsecs", "3pt", "size 3%", "kl"]
)
def test_a_limit_that_means_nothing(limit: str, certify: Refuse) -> None:
    assert certify(limit).name == "InvalidBudget"


@pytest.mark.parametrize("confidence", ["0", "1", "1.5", "nan", "-0.5"])
def test_a_confidence_that_means_nothing(confidence: str, certify: Refuse) -> None:
    assert certify("kl 0.1", options=(f"--confidence={confidence}",)).name == "InvalidBudget"


def test_an_unknown_metric(certify: Refuse) -> None:
    error = certify("kll 0.1")
    assert error.name == "UnknownName"
    assert "kl" in error.mend


def test_an_unknown_bound(certify: Refuse) -> None:
    error = certify("kl 0.1", options=("--engine", "planned-mixtures"))
    assert error.name == "UnknownName"
    assert "planned-mixture" in error.mend


@pytest.mark.parametrize(
    ("limit", "options", "words"),
    [
        ("kl 0.1", ("--engine", "clustered-t"), "scope corpus"),
        ("kl 0.1", ("--scope", "asymptotic", "--engine", "planned-mixture"), "scope asymptotic"),
        ("kl 0.1", ("--scope", "corpus", "--engine", "maurer-pontil"), "scope corpus"),
        ("2%", ("--engine", "hedged-capital"), "perplexity"),
        ("kl 0.1", ("--engine", "clopper-pearson"), "kl"),
        ("kl 0.1", ("--scope", "source", "--engine", "tango"), "kl"),
    ],
)  # fmt: skip
def test_a_bound_that_does_not_hold_here(limit: str, options: tuple[str, ...], words: str, certify: Refuse) -> None:
    error = certify(limit, options=options)
    assert (error.name, error.site) == ("InvalidBudget", "--engine")
    assert words in error.happened


def test_metrics_and_what_they_read(certify: Refuse, quiz: Path, tmp_path: Path) -> None:
    for limit in ("accuracy 1pt", f"kl:{quiz} 0.1", f"perplexity:{quiz} 1%", "cosine 0.1", f"exact_match:{quiz} 5pt"):
        assert certify(limit).name == "InvalidBudget", limit
    written = lines(tmp_path / "written.jsonl", *[{"question": f"ka {i}", "answer": "mi"} for i in range(30)])
    error = certify(f"accuracy:{written} 5pt")
    assert "no choices" in error.happened


@pytest.mark.parametrize(
    "limits", [("kl 0.1", "kl 0.2"), ("agreement 9%", "disagreement 8%"), ("top-5 9%", "top-k(k=3) 8%")]
)
def test_two_limits_on_one_metric(limits: tuple[str, ...], certify: Refuse) -> None:
    error = certify(*limits)
    assert error.name == "InvalidBudget"
    assert "two limits" in error.happened


def test_limits_below_the_noise_floor(certify: Refuse, tmp_path: Path) -> None:
    """What the model differs from itself by is measured, and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pennyweight.flow.certifying.pair._pilot", never)
        error = certify_and_forget(certify, tmp_path, "kl 1e-9")
    assert error.name == "InvalidBudget"
    assert "differs from itself" in error.happened


def certify_and_forget(certify: Refuse, tmp_path: Path, *lose: str) -> Refused:
    """A refusal that comes once measuring has begun leaves its journal; what it held is in nobody's way."""
    run = tmp_path / "small.run"
    with pytest.MonkeyPatch.context() as patch:
        whole = world.hashes
        patch.setattr(world, "hashes", lambda d: {k: v for k, v in whole(d).items() if not k.startswith(run.name)})
        patch.setattr(Path, "rglob", without(run, Path.rglob))
        return certify(*lose)


def without(run: Path, find: Callable[..., Iterator[Path]]) -> Callable[..., list[Path]]:
    return lambda self, pattern: [path for path in find(self, pattern) if run not in (path, *path.parents)]


def test_questions_that_are_none(certify: Refuse, tmp_path: Path) -> None:
    good = {"question": "ka", "choices": ["mi", "ren"], "answer": "mi"}
    for records, words in (
        ([{**good, "answer": "sol"}], "not among"),
        ([{**good, "answer": 2}], "not among"),
        ([], "no question"),
        ([{**good, "choices": ["mi"]}], "1 choices"),
        ([good, good], "again"),
        ([{"answer": "mi"}], "question"),
        ([5], "a number"),
    ):
        error = certify(f"accuracy:{lines(tmp_path / 'quiz.jsonl', *records)} 5pt")
        assert error.name == "InvalidText", words
        assert words in error.happened
        assert "quiz.jsonl" in error.site
    assert certify(f"accuracy:{tmp_path / 'none.jsonl'} 5pt").name == "MissingFile"


def test_one_question(certify: Refuse, tmp_path: Path) -> None:
    one = lines(tmp_path / "quiz.jsonl", {"question": "ka", "choices": ["mi", "ren"], "answer": "mi"})
    error = certify(f"accuracy:{one} 5pt", on=None)
    assert error.name == "InvalidMeasurement"
    assert "1 questions" in error.happened


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_little_text(count: int, certify: Refuse, tmp_path: Path) -> None:
    """Nothing at all, one document, and three that make too few windows."""
    short = world.write_text(tmp_path / "short.txt", [part[:300] for part in world.documents(count, 1, seed=9)])
    assert certify("kl 0.1", on=short).name == "InvalidText"


def test_groups_that_nobody_has(certify: Refuse, quiz: Path, parts: list[str], tmp_path: Path) -> None:
    labelled = lines(tmp_path / "t.jsonl", *[{"text": part, "language": "ka"} for part in parts])
    error = certify("kl 0.1", options=("--groups", "langauge"), on=labelled)
    assert error.name == "UnknownName"
    assert "language" in error.expected
    assert certify(f"accuracy:{quiz} 5pt", options=("--groups", "topic"), on=None).name == "UnknownName"


def test_certify_models_that_do_not_compare(
    certify: Refuse, llama: Path, save_model: Callable[..., object], tmp_path: Path
) -> None:
    config = json.loads((llama / "config.json").read_text())
    save_model({**config, "vocab_size": 200}, tmp_path / "other")
    error = certify("kl 0.1", other=tmp_path / "other")
    assert error.name == "InvalidMeasurement"
    assert "vocabular" in error.happened
    assert certify("kl 0.1", other=tmp_path / "nowhere").name == "MissingFile"


@pytest.mark.parametrize("which", ["model", "other"])
def test_certify_weights_that_are_no_numbers(which: str, certify: Refuse, model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    error = certify_and_forget(lambda *lose: certify(*lose, **{which: model}), tmp_path, "kl 0.1")
    assert error.name in ("InvalidWeights", "InvalidMeasurement")


def test_a_certificate_where_something_lies(certify: Refuse, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.tex").write_text("the only copy")
    assert certify("kl 0.1").name == "InvalidOutput"
    (tmp_path / "file").write_text("a file")
    assert certify("kl 0.1", options=("--out", tmp_path / "file")).name == "InvalidOutput"


def test_openings_that_cannot_be_remembered(certify: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("PENNYWEIGHT_STATE", str(tmp_path / "state"))
    error = certify_and_forget(certify, tmp_path, "kl 0.1")
    assert error.name == "InvalidOutput"
    assert "PENNYWEIGHT_STATE" in error.mend


def test_a_source_of_too_few_documents(certify: Refuse, tmp_path: Path) -> None:
    few = world.write_text(tmp_path / "few.txt", world.documents(12, 3, seed=9))

    def by_source(*lose: str) -> Refused:
        return certify(*lose, options=("--scope", "source"), on=few)

    error = certify_and_forget(by_source, tmp_path, "kl 0.05")
    assert error.name == "InfeasibleBudget"
    assert "independent units" in error.happened
    assert "--scope corpus" in error.mend
