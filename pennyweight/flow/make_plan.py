"""From a table of options and a budget to a plan, or to a ladder of plans from safe to aggressive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pennyweight import catalogue
from pennyweight.budget import Budget
from pennyweight.errors import InfeasibleBudget, InvalidBudget, InvalidFormat, InvalidMethod, InvalidPlan, UnknownName
from pennyweight.export.engines import Engine, find
from pennyweight.flow.options import Table
from pennyweight.formats import Dense, Format, Grid
from pennyweight.network.network import Network, Site
from pennyweight.plan import Input, Option, Plan, plan_of
from pennyweight.problem import Limit, Problem

REMAKE = "make a new plan with pennyweight plan MODEL"


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Everything that stays the same between the rungs of a ladder.

    Args:
        network: the reference.
        table: its options.
        engine: whose files are to be written.
        dtype: of scales and of everything dense.
        seed: recorded in the plan.
        allocation: the allocator's name.
        beside: bytes of headers, tokenizer and other files beside the tensors, at most.
        model: fingerprint of the model that the user has, where the network is a rewrite of it.
        rewrites: that led from there to the network.
        recovery: what is trained afterwards.
        always: limits that every plan keeps, beside the one it is made for.
        cache: how keys and values are rounded.
    """

    network: Network
    table: Table
    engine: Engine
    dtype: str
    seed: int = 0
    allocation: str = "integer_program"
    beside: int = 0
    model: str = ""
    rewrites: tuple[str, ...] = ()
    recovery: tuple[str, ...] = ()
    always: tuple[Limit, ...] = ()
    cache: Input | None = None

    def within_damage(self, damage: float) -> Plan:
        """The smallest plan whose predicted KL is at most `damage`, nats per token."""
        return self.within(Limit("damage", damage))

    def within(self, *limits: Limit) -> Plan:
        """The best plan within limits: the smallest where damage is limited, of the least damage where it is not.

        Raises:
            InfeasibleBudget: there is none, or nothing at all can be compressed.
        """
        self.check_any()
        return self.plan(
            catalogue.find(self.allocation, "allocation").allocate(self.table.groups, Problem.of(*limits, *self.always))
        )

    def limit(self, budget: Budget, *, share: float = 1.0) -> Limit:
        """A budget as a limit on what plans add up.

        Args:
            budget: what is allowed; of a perplexity or KL budget only `share` is.
            share: of the margin to spend.

        Raises:
            InfeasibleBudget: even the smallest plan is larger; it says how large.
            InvalidBudget: a metric that no plan predicts.
        """
        self.check_any()
        if budget.metric in ("perplexity", "kl"):  # for small losses both are the damage that is predicted
            return Limit("damage", share * budget.margin)
        if budget.metric == "size":
            return self._bytes(int(budget.at_most))
        if budget.metric == "bits":
            return self._bits(budget.at_most)
        if budget.metric == "memory":
            return next(limit for limit in self.always if limit.of == "memory")
        raise InvalidBudget(
            f"no plan can be made for a budget on {budget.metric} by prediction alone",
            expected="perplexity, kl, size or bits",
            mend="compress measures any metric and plans by it",
            site="budget",
        )

    def for_budget(self, budget: Budget, *, share: float = 1.0) -> Plan:
        """The plan for a budget; a perplexity budget is spent up to `share` of it."""
        return self.within(self.limit(budget, share=share))

    def plan(self, choices: Sequence[Option]) -> Plan:
        """The plan of one option for every group."""
        kept = dict(self.table.kept)
        for option in choices:
            if isinstance(option.step.stages[0].format, Dense):
                kept |= dict.fromkeys(option.sites, "the budget allows no change of it")
        return plan_of(
            choices, kept=kept, engine=self.engine.name, dtype=self.dtype, seed=self.seed,
            bytes=self.table.fixed_bytes + sum(option.bytes for option in choices),
            model=self.model or self.network.source.fingerprint, rewrites=self.rewrites,
            recovery=self.recovery, cache=self.cache,
        )  # fmt: skip

    def size(self, choices: Sequence[Option]) -> int:
        """Bytes of the files of a choice, tokenizer and headers included, at most."""
        return self._fixed + sum(option.bytes for option in choices)

    def _bytes(self, size: int) -> Limit:
        least = sum(min(option.bytes for option in group) for group in self.table.groups)
        total = least + self._fixed
        if total > size:
            raise InfeasibleBudget(
                f"no plan of this model for {self.engine.name} fits in {size / 1e6:.3f} MB",
                expected=f"at least {total / 1e6:.1f} MB, of which {self.table.fixed_bytes / 1e6:.1f} MB are tensors "
                f"that stay dense and {self.beside / 1e6:.1f} MB are tokenizer and headers",
                mend=f"--fit {-(-total // 100_000) / 10:.1f}MB",
                site="--fit",
            )
        return Limit("bytes", float(size - self._fixed))

    def _bits(self, bits: float) -> Limit:
        sites = [self.network.by_name[name] for group in self.table.groups for name in group[0].sites]
        weights = sum({self.network.stored_name(site.parameter): site.elements for site in sites}.values())
        least = 8 * sum(min(option.bytes for option in group) for group in self.table.groups) / max(weights, 1)
        if least > bits:
            raise InfeasibleBudget(
                f"no plan of this model for {self.engine.name} stores {bits:g} bits per weight",
                expected=f"at least {least:.2f}, scales and zero points included",
                mend=f"--bits {-(-least * 100 // 1) / 100:.2f}",
                site="--bits",
            )
        return Limit("bytes", bits * weights / 8)

    @property
    def _fixed(self) -> int:
        return self.table.fixed_bytes + self.beside

    def check_any(self) -> None:
        """Refuse a network of which the engine takes nothing compressed.

        Raises:
            InfeasibleBudget: it says why.
        """
        if not self.table.groups:
            raise InfeasibleBudget(
                f"{self.engine.name} takes nothing of this model compressed: "
                + "; ".join(sorted({*self.table.kept.values()})),
                expected="one linear layer or more in a format it reads",
                mend="pennyweight inspect MODEL shows what each engine takes", site="--for",
            )  # fmt: skip


def check_dtype(dtype: str, engine: Engine) -> None:
    """Refuse a type that an engine does not read.

    Raises:
        InvalidFormat: with the types it reads.
    """
    if dtype not in engine.dtypes:
        raise InvalidFormat(
            f"{engine.name} takes no tensors in {dtype}", expected=f"one of {', '.join(sorted(engine.dtypes))}",
            mend=f"--dtype {min(engine.dtypes)}", site="--dtype",
        )  # fmt: skip


def check_files(network: Network, engine: Engine, dtype: str) -> None:
    """Refuse what cannot be written for an engine: a type it does not read, a network its files cannot hold.

    Raises:
        PennyweightError: InvalidFormat with the types it reads, or what its files say of the network.
    """
    check_dtype(dtype, engine)
    engine.files.check(network, {}, dtype)


def check_model(plan: Plan, fingerprint: str, *, site: str = "plan") -> None:
    """Refuse a plan that was made for another model.

    Raises:
        InvalidPlan: it was.
    """
    if plan.model != fingerprint:
        raise InvalidPlan(
            f"this plan was made for another model ({plan.model[:12]}…, here {fingerprint[:12]}…)",
            expected="the model whose weights and config the plan was made for", mend=REMAKE, site=site,
        )  # fmt: skip


def check_plan(plan: Plan, network: Network, *, model: str | None = None, site: str = "plan") -> Engine:
    """Refuse a plan that cannot be carried out on this network, before any work.

    Args:
        plan: the recipe.
        network: what is to be compressed.
        model: fingerprint of the model it is a rewrite of; None where it is none.
        site: what to call the plan.

    Raises:
        InvalidPlan: made for another model, names an unknown site or method, gives fused sites different steps, or
            asks for something the engine or the shape refuses.
    """
    check_model(plan, network.source.fingerprint if model is None else model, site=site)
    if plan.rewrites and model is None:
        raise InvalidPlan(
            f"this plan rewrites the model first ({', '.join(plan.rewrites)})",
            expected="a plan for the model as it is",
            mend="pennyweight compress --plan carries it out, rewrites included", site=site,
        )  # fmt: skip
    engine = find(plan.engine)
    check_files(network, engine, plan.dtype)
    sites = network.by_name
    for name, step in plan.steps.items():
        if name not in sites:
            raise InvalidPlan(
                "the model has no such site", expected="a site that pennyweight inspect lists", mend=REMAKE, site=name
            )
        for stage in step.stages:
            try:
                catalogue.find(stage.method, "quantization")
            except (UnknownName, InvalidMethod) as error:
                raise InvalidPlan(error.happened, expected=error.expected, mend=error.mend, site=name) from error
        if len(step.stages) != 1 or isinstance(step.stages[0].format, Dense):
            raise InvalidPlan(
                "only one stage, on a grid or other codes, can be written", expected="such as gptq int4 g64 sym",
                mend="use one stage; a site without a step stays dense", site=name,
            )  # fmt: skip
        format = step.stages[0].format
        if isinstance(format, Grid) and format.scale_dtype != plan.dtype:
            raise InvalidPlan(
                f"scales in {format.scale_dtype} in a plan of dtype {plan.dtype}",
                expected="scales in the dtype of the plan", site=name,
                mend=f"add {plan.dtype} to the step, or change dtype",
            )  # fmt: skip
        try:
            format.fields(sites[name].shape)
        except InvalidFormat as error:
            error.site = name
            raise
        reason = engine.refuses(sites[name], format, network)
        if reason:
            raise InvalidPlan(
                f"{engine.name} refuses {format.label()}: {reason}",
                expected="a step that pennyweight inspect lists for this engine",
                mend="choose another step, or remove this one to keep the site dense", site=name,
            )  # fmt: skip
        if step.input is not None:
            _check_input(step.input, format, engine, sites[name])
        needs = catalogue.find(step.stages[0].method, "quantization").needs
        if sites[name].block is None and needs:
            raise InvalidPlan(
                f"{step.stages[0].method} needs the {', '.join(sorted(needs))} of what a site reads, which is "
                "collected in blocks alone",
                expected="such as round_to_nearest q8_0", mend="choose another step", site=name,
            )  # fmt: skip
    if plan.cache is not None and plan.cache.format not in engine.caches:
        raise InvalidPlan(
            f"{engine.name} keeps no keys and values in {plan.cache.label()}",
            expected=f"one of {', '.join(one.label() for one in engine.caches)}" if engine.caches else "no cache line",
            mend="leave cache out", site=site,
        )  # fmt: skip
    for group in network.groups():
        shared = len({network.stored_name(site.parameter) for site in group}) < len(group)
        if engine.fused_groups or shared:
            labels = {plan.steps[s.name].label() if s.name in plan.steps else "dense" for s in group}
            if len(labels) > 1:
                raise InvalidPlan(
                    f"{engine.name} fuses {', '.join(s.name for s in group)} and the plan gives them {sorted(labels)}"
                    if not shared
                    else f"{', '.join(s.name for s in group)} are one tensor and the plan gives them {sorted(labels)}",
                    expected="one step for all of them", mend="give them the same step", site=group[0].name,
                )  # fmt: skip
    return engine


def _check_input(input: Input, format: Format, engine: Engine, site: Site) -> None:
    """Refuse a rounding of what a site reads that its engine does not make, or that nobody knows how to fit.

    Raises:
        InvalidPlan: it says which.
    """
    try:
        catalogue.find(input.method, "activations")
    except (UnknownName, InvalidMethod) as error:
        raise InvalidPlan(error.happened, expected=error.expected, mend=error.mend, site=site.name) from error
    reason = engine.refuses_input(format, input.format)
    if reason or site.role != "linear":
        raise InvalidPlan(
            reason or "only layers in blocks round what they read", expected="a product that the engine has",
            mend="pennyweight list shows them; without ' | ' and what follows, a layer rounds nothing",
            site=site.name,
        )  # fmt: skip


def usual_dtype(network: Network) -> str:
    """The 16-bit type most weights are in; float16 for wider models and for codes, whose scales are float16 in GGUF."""
    counts: dict[str, int] = {}
    for info in network.source.tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + math.prod(info.shape)
    most = max(counts, key=lambda dtype: counts[dtype])
    return most if most in ("float16", "bfloat16") else "float16"
