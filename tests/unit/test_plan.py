"""Plans: steps as text, TOML there and back, and every damaged file answered with an InvalidPlan."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.errors import InvalidFormat, InvalidMethod, InvalidPlan, UnknownName
from pennyweight.flow.options import predictor
from pennyweight.formats import Dense, Grid
from pennyweight.plan import Option, Plan, Stage, Step, plan_of

formats = st.one_of(
    st.builds(
        Grid, bits=st.integers(2, 8), group_size=st.sampled_from([None, 32, 64, 96, 128]), symmetric=st.booleans(),
        scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    ),
    st.builds(Dense, dtype=st.sampled_from(["float16", "bfloat16", "float32"])),
)  # fmt: skip
methods = st.sampled_from(["gptq", "round_to_nearest", "gptq(damping=0.02)", "gptq(damping=0.5, search=False)"])
steps = st.builds(Step, st.lists(st.builds(Stage, methods, formats), min_size=1, max_size=3).map(tuple))
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)
plans = st.builds(
    Plan, steps=st.dictionaries(names, steps, max_size=5), kept=st.dictionaries(names, names, max_size=3),
    engine=st.sampled_from(["transformers", "vllm"]), dtype=st.sampled_from(["float16", "bfloat16"]),
    seed=st.integers(0, 2**31), bytes=st.integers(0, 2**50), damage=st.floats(0, 100), model=names,
)  # fmt: skip


@given(steps)
def test_steps_are_read_back(step: Step) -> None:
    assert Step.parse(step.label()) == step


@given(plans)
def test_toml_there_and_back(plan: Plan) -> None:
    noted = dataclasses.replace(plan, notes=dict.fromkeys(list(plan.steps)[:2], 'why: "because"\n# of it'))
    for original in (plan, noted):
        assert Plan.from_toml(original.to_toml()) == original


def test_a_step_may_be_a_plain_string() -> None:
    text = example().to_toml()
    short = text.partition("[steps")[0] + '[steps]\n"a.b" = "gptq int3 g64 asym"\n'
    assert Plan.from_toml(short).steps == {"a.b": Step((Stage("gptq", Grid(bits=3, group_size=64, symmetric=False)),))}


def example() -> Plan:
    stage = Stage("gptq", Grid(bits=4, group_size=64, symmetric=False))
    return Plan(
        steps={"a.q": Step((stage,)), "a.k": Step((stage,)), "a.up": Step((Stage("gptq", Grid(bits=8)),))},
        kept={"head": "tied"}, engine="vllm", dtype="float16", seed=3, bytes=12_345_678, damage=0.0123, model="abc",
        notes={"a.q": "123 bytes"},
    )  # fmt: skip


def test_explain_counts_and_predicts() -> None:
    text = example().explain()
    assert "2 x gptq int4 g64 asym" in text
    assert "1 x gptq int8 row sym" in text
    assert "1 x kept dense (float16)" in text
    assert "12.3 MB" in text
    assert "0.01230 nats per token" in text
    assert "kept" not in dataclasses.replace(example(), kept={}).explain()


def test_formats_lists_the_grids() -> None:
    plan = dataclasses.replace(example(), steps={**example().steps, "d": Step((Stage("cast", Dense()),))})
    assert plan.formats() == {n: s.stages[0].format for n, s in example().steps.items()}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[plan]", "[plan"), ("[plan]", "[plans]"), ("seed = 3", 'seed = "three"'), ("seed = 3\n", ""),
        ("bytes = 12345678", "bytes = []"), ("damage = 0.0123", 'damage = "much"'), ("gptq int4 g64 asym", "gptq"),
        ("gptq int4 g64 asym", "gptq int4 g64"), ("gptq int4 g64 asym", ""), ("int4 g64 asym", "int12 g64 asym"),
        ("gptq int4 g64 asym", "gptq int9 g64 asym"), ('step = "gptq int4 g64 asym"', "step = 4"),
        ('step = "gptq int4 g64 asym"', 'stap = "gptq int4 g64 asym"'), ("engine =", "motor ="), ("model =", "modal ="),
    ],
)  # fmt: skip
def test_damaged_plans_are_refused(old: str, new: str) -> None:
    text = example().to_toml()
    assert old in text
    with pytest.raises(InvalidPlan) as error:
        Plan.from_toml(text.replace(old, new, 1), site="plan.toml")
    assert error.value.expected
    assert error.value.mend


@pytest.mark.parametrize("text", ["", "plan", "\0", "plan = 3", "[steps]", '[plan]\nengine = "x"'])
def test_what_was_never_a_plan(text: str) -> None:
    with pytest.raises(InvalidPlan, match=r"plan\.toml: this is not a plan"):
        Plan.from_toml(text, site="plan.toml")


@given(st.data())
def test_a_plan_cut_short_is_refused_or_shorter(data: st.DataObject) -> None:
    text = example().to_toml()
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    try:
        plan = Plan.from_toml(cut)
    except InvalidPlan:
        return
    assert len(plan.steps) <= 3
    assert plan.engine == "vllm"


@pytest.mark.parametrize(
    ("text", "error"),
    [("gptq", InvalidPlan), ("", InvalidPlan), ("gptq(damping=0.1)", InvalidPlan), ("gptq int4", UnknownName),
     ("gptq int1 row sym", InvalidFormat), ("gptq int4 g64 asym + ", InvalidPlan)],
)  # fmt: skip
def test_steps_nobody_can_read(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Step.parse(text)


def test_plan_of_options_leaves_dense_groups_out() -> None:
    grid = Step((Stage("gptq", Grid(bits=4, group_size=64)),))
    chosen = [
        Option(sites=("q", "k"), step=grid, bytes=10, damage=0.5),
        Option(sites=("o",), step=Step((Stage("cast", Dense()),)), bytes=40, damage=0.25),
    ]
    plan = plan_of(chosen, kept={"o": "why"}, engine="vllm", dtype="float16", seed=0, bytes=50, model="m")
    assert plan.steps == {"q": grid, "k": grid}
    assert plan.damage == 0.75
    assert set(plan.notes) == {"q"}


def test_plans_rest_on_predictions_of_the_method_or_of_gptq() -> None:
    assert predictor("round_to_nearest").name == "round_to_nearest"
    assert predictor("gptq(damping=0.02)").damping == 0.02
    assert predictor("coordinate_descent").name == "gptq"
    with pytest.raises(InvalidMethod, match="no integer grids"):
        predictor("decoupleq")
