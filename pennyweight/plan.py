"""What each tensor becomes, and why: a value that can be printed, saved as TOML, edited and loaded again."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from pennyweight import formats
from pennyweight.errors import InvalidPlan
from pennyweight.formats import Dense, Format, passing
from pennyweight.formats.passing import Passing

READS = " | "  # between what a site becomes and how what it reads is rounded


@dataclass(frozen=True)
class Stage:
    """One method with the format it stores in; `method` is a name, with arguments if any: `gptq(damping=0.02)`."""

    method: str
    format: Format

    def label(self) -> str:
        """Such as `gptq int4 g64 asym`."""
        return f"{self.method} {self.format.label()}"


@dataclass(frozen=True)
class Step:
    """What becomes of one site: stages, each working on what the one before it left over.

    Args:
        stages: methods and the formats they store in.
        input: how what the site reads is rounded while the network runs; None where it is not.
    """

    stages: tuple[Stage, ...]
    input: Input | None = None

    def label(self) -> str:
        """Stages joined by ` + `, and ` | ` with what it reads; `parse` reads it back."""
        stored = " + ".join(stage.label() for stage in self.stages)
        return stored if self.input is None else f"{stored}{READS}{self.input.label()}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """Read a label such as `gptq int4 g64 asym`, or `gptq int8 row sym | int8 token`.

        Raises:
            UnknownName: a format nobody knows.
            InvalidPlan: no method, or no format.
        """
        stored, reads, rounded = text.partition(READS)
        stages = []
        for part in stored.split(" + "):
            end = part.rfind(")")
            method, _, label = (
                (part[: end + 1], "", part[end + 1 :].strip()) if end >= 0 else part.strip().partition(" ")
            )
            if not method or not label:
                raise InvalidPlan(
                    f"cannot read the step {text!r}",
                    expected="a method and a format, such as 'gptq int4 g64 asym'",
                    mend="pennyweight list shows every method and format",
                )
            stages.append(Stage(method.strip(), formats.parse(label)))
        return cls(tuple(stages), Input.parse(rounded) if reads else None)


@dataclass(frozen=True)
class Input:
    """How what a site reads is rounded while the network runs: `int8 token`, `static_mse int8 tensor asym`.

    Args:
        method: of the room `activations`, with arguments if any.
        format: what the activation is written in.
    """

    method: str
    format: Passing

    def label(self) -> str:
        """Method and format, or the format alone where the method is the usual one; `parse` reads both back."""
        usual = self.method == _usual(self.format)
        return self.format.label() if usual else f"{self.method} {self.format.label()}"

    @classmethod
    def parse(cls, text: str) -> Input:
        """Read a label.

        Raises:
            UnknownName: a format nobody knows.
            InvalidFormat: a format that cannot be.
        """
        for kind in passing.PASSING:
            if found := kind.parse(text):
                return cls(_usual(found), found)
        end = text.rfind(")")
        method, _, label = (text[: end + 1], "", text[end + 1 :]) if end >= 0 else text.strip().partition(" ")
        return cls(method.strip(), passing.parse(label.strip()))

    @classmethod
    def examples(cls) -> tuple[Input, ...]:
        """A few that are usual."""
        labels = (
            "int8 token", "int8 token asym", "int6 g128", "fp8 e4m3 token", "int8 tensor", "static_mse int8 tensor",
            "static_percentile(percentile=99.9) int8 tensor asym", "static_entropy int8 tensor", "fp8 e4m3 tensor",
            "sort_and_cluster(heads=24) int8 clusters",
        )  # fmt: skip
        return tuple(cls.parse(label) for label in labels)


def _usual(format: Passing) -> str:
    if format.over.dynamic:
        return "dynamic"
    return "sort_and_cluster" if format.over.kind == "clusters" else "static_range"


@dataclass(frozen=True, kw_only=True)
class Option:
    """One thing a group of sites could become.

    Args:
        sites: names of the sites it decides for together.
        step: what each of them becomes.
        bytes: what all of them then take on disk.
        damage: predicted rise of KL(reference || compressed), nats per token, were this the only change.
        milliseconds: a token takes in all of them together, where an engine's times are known.
        memory: bytes that an engine holds of all of them while it runs, where that is limited.
    """

    sites: tuple[str, ...]
    step: Step
    bytes: int
    damage: float
    milliseconds: float = 0.0
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The recipe.

    Args:
        steps: what each site becomes; sites that are missing stay dense.
        kept: sites that stay dense, with the reason.
        engine: whose files are to be written.
        dtype: of scales and of everything dense.
        seed: of every random stream.
        bytes: predicted size of all tensors on disk.
        damage: predicted KL, nats per token.
        model: fingerprint of the model it was made for.
        notes: predicted bytes and damage of each site's group, for people who edit.
        rewrites: changes of basis that the model goes through first, with the plan's seed.
        recovery: what is trained after the steps, by name, in this order.
        cache: how keys and values are rounded that the network keeps; None where they are not.
    """

    steps: Mapping[str, Step]
    kept: Mapping[str, str]
    engine: str
    dtype: str
    seed: int
    bytes: int
    damage: float
    model: str
    notes: Mapping[str, str] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    recovery: tuple[str, ...] = ()
    cache: Input | None = None

    def formats(self) -> dict[str, Format]:
        """Format of every site that does not stay dense."""
        chosen = {name: step.stages[0].format for name, step in self.steps.items()}
        return {name: format for name, format in chosen.items() if not isinstance(format, Dense)}

    def inputs(self) -> dict[str, Input]:
        """How what sites read is rounded; sites that read it as it is are not named."""
        return {name: step.input for name, step in self.steps.items() if step.input is not None}

    def explain(self) -> str:
        """A table of how many sites get what."""
        counts = Counter(step.label() for step in self.steps.values())
        lines = [f"{count:5d} x {label}" for label, count in counts.most_common()]
        lines += [f"{len(self.kept):5d} x kept dense ({self.dtype})"] if self.kept else []
        lines += [f"      keys and values in {self.cache.label()}"] if self.cache else []
        lines.append(f"predicted: {self.bytes / 1e6:.1f} MB, KL {self.damage:.5f} nats per token")
        return "\n".join(lines)

    def to_toml(self) -> str:
        """The plan as TOML; comments by the user do not survive a round trip."""
        head = {
            "engine": self.engine, "dtype": self.dtype, "seed": self.seed, "bytes": self.bytes,
            "damage": self.damage, "model": self.model, **({"rewrites": [*self.rewrites]} if self.rewrites else {}),
            **({"recovery": [*self.recovery]} if self.recovery else {}),
            **({"cache": self.cache.label()} if self.cache else {}),
        }  # fmt: skip
        steps = {
            name: {"step": step.label(), **({"why": self.notes[name]} if name in self.notes else {})}
            for name, step in self.steps.items()
        }
        header = (
            "# A Pennyweight plan. Edit the steps and run: pennyweight compress MODEL --out small/ --plan plan.toml\n"
            "# Sites that share an input (q, k, v; gate, up) must get one step where the engine fuses them.\n"
        )
        return header + tomli_w.dumps({"plan": head, "steps": steps, "kept": dict(self.kept)})

    @classmethod
    def from_toml(cls, text: str, *, site: str = "plan") -> Plan:
        """Read a plan.

        Raises:
            InvalidPlan: not TOML, a field missing or of the wrong kind, or a step nobody can read.
        """
        try:
            data = tomllib.loads(text)
            head, steps = data["plan"], data["steps"]
            return cls(
                steps={name: Step.parse(_string(row, name)) for name, row in steps.items()},
                kept={str(k): str(v) for k, v in data.get("kept", {}).items()},
                notes={name: row["why"] for name, row in steps.items() if isinstance(row, dict) and "why" in row},
                engine=str(head["engine"]), dtype=str(head["dtype"]), seed=int(head["seed"]),
                bytes=int(head["bytes"]), damage=float(head["damage"]), model=str(head["model"]),
                rewrites=tuple(map(str, _listed("rewrites", head.get("rewrites", [])))),
                recovery=tuple(map(str, _listed("recovery", head.get("recovery", [])))),
                cache=Input.parse(str(head["cache"])) if "cache" in head else None,
            )  # fmt: skip
        except (
            ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError,
        ) as error:  # fmt: skip # errors in TOML are values
            if isinstance(error, InvalidPlan):
                raise
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise InvalidPlan(
                f"this is not a plan: {reason}",
                expected="the TOML that `pennyweight plan` writes, with [plan], [steps] and [kept]",
                mend="make a new one with pennyweight plan MODEL --lose 2% -o plan.toml",
                site=site,
            ) from error


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidPlan(f"{name} is no list", expected=f'{name} = ["a_method", "another"]', mend="mend this line")
    return value


def _string(row: Any, name: str) -> str:
    value = row.get("step") if isinstance(row, dict) else row
    if not isinstance(value, str):
        raise InvalidPlan(
            "the step is not a text", expected='{ step = "gptq int4 g64 asym" }', mend="mend this line", site=name
        )
    return value


def plan_of(choices: Sequence[Option], **rest: Any) -> Plan:
    """A plan out of one option for every group; options that keep a group dense become no step."""
    steps = {
        site: option.step
        for option in choices
        for site in option.sites
        if not isinstance(option.step.stages[0].format, Dense)
    }
    notes = {
        site: f"{option.bytes} bytes and {option.damage:.2e} nats per token with {', '.join(option.sites)}"
        for option in choices
        for site in option.sites[:1]
        if site in steps
    }
    return Plan(steps=steps, notes=notes, damage=sum(option.damage for option in choices), **rest)
