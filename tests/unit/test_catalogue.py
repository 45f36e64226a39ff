"""Finding methods by name, with arguments, and the answer to a misspelt one."""

from __future__ import annotations

import pytest

from pennyweight import catalogue
from pennyweight.errors import UnknownName
from pennyweight.methods.allocation import IntegerProgram
from pennyweight.methods.quantization import GPTQ, RoundToNearest


def test_names_and_arguments() -> None:
    assert catalogue.find("gptq") == GPTQ()
    assert catalogue.find(" gptq ") == GPTQ()
    assert catalogue.find("gptq()") == GPTQ()
    assert catalogue.find("gptq(damping=0.02)") == GPTQ(damping=0.02)
    assert catalogue.find("gptq(damping=1e-3, search=False)", "quantization") == GPTQ(damping=0.001, search=False)
    assert catalogue.find("integer_program(gap=0)", "allocation") == IntegerProgram(gap=0)


def test_an_object_needs_no_registering() -> None:
    class Mine:
        name = "mine"

    mine = Mine()
    assert catalogue.find(mine, "quantization") is mine


@pytest.mark.parametrize(
    ("wrong", "meant"), [("gtpq", "gptq"), ("round_to_nearst", "round_to_nearest"), ("GPTQ", "gptq")]
)
def test_the_nearest_name_is_offered(wrong: str, meant: str) -> None:
    with pytest.raises(UnknownName) as error:
        catalogue.find(wrong)
    assert wrong in error.value.happened
    assert meant in error.value.expected
    assert meant in error.value.mend or wrong == "GPTQ"


def test_a_method_of_another_room_is_not_found() -> None:
    with pytest.raises(UnknownName) as error:
        catalogue.find("gptq", "allocation")
    assert "gptq" not in error.value.expected
    assert error.value.site == "allocation"


def test_unknown_arguments_name_the_known() -> None:
    with pytest.raises(UnknownName) as error:
        catalogue.find("gptq(dampening=0.02)")
    assert "damping" in error.value.expected
    assert "damping" in error.value.mend


@pytest.mark.parametrize(
    "spec",
    ["gptq(", "gptq(0.02)", "gptq(damping)", "gptq(damping=)", "gptq(damping=x)", "gptq(damping=0.1))", "gptq)("],
)
def test_what_cannot_be_read(spec: str) -> None:
    with pytest.raises(UnknownName):
        catalogue.find(spec)


def test_nothing_in_a_spec_is_run() -> None:
    with pytest.raises(UnknownName, match="cannot read"):
        catalogue.find("gptq(damping=__import__('os').getpid())")


def test_every_lists_rooms_in_order_with_their_methods() -> None:
    pairs = list(catalogue.every())
    assert ("quantization", GPTQ) in pairs
    assert ("quantization", RoundToNearest) in pairs
    assert [room for room, _ in pairs] == sorted(room for room, _ in pairs)
    assert catalogue.rooms() == tuple(sorted(catalogue.rooms()))
