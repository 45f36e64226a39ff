"""Tail risk: how often a model, sampled from, writes something bad, before and after compression.

Source: Estimating Tail Risks in Language Model Output Distributions. 2026. arXiv:2604.22167. The proposal is chosen
token by token: with probability `mix` from another model, else from the target, up to the position `switch`, and from
the target alone after it. A compressed model makes what the reference seldom does likelier, and so does a smaller
sibling for the compressed one: proposals that cost no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pennyweight.errors import InvalidMeasurement, InvalidMethod, InvalidText
from pennyweight.flow.sampling.generate import Resident, resident, stop_ids
from pennyweight.flow.sampling.mixture import write
from pennyweight.methods.probability import ImportanceSampling, TailCertificate, TailEstimate
from pennyweight.network.network import Network
from pennyweight.network.sources.tokenizer import load_tokenizer
from pennyweight.numerics.random import stream

SITE = "tail risk"


@dataclass(frozen=True, kw_only=True)
class ModelTail:
    """The tail of one model, over the prompts given.

    Args:
        proposal: whose tokens were mixed in for the estimate: `reference`, `compressed`, `sibling`, or `none`.
        estimate: from weighted samples; unbiased, no guarantee. Its interval treats prompts as drawn at random too.
        certificate: from plain samples; exact, for these prompts and this way of sampling.
        by_prompt: the estimate of each prompt.
        plain: badness of each plain sample, those of a prompt together: what the certificate rests on.
    """

    proposal: str
    estimate: TailEstimate
    certificate: TailCertificate
    by_prompt: tuple[float, ...]
    plain: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TailRisk:
    """Both tails, from common prompts and common random numbers, and how they were drawn.

    Args:
        reference: before.
        compressed: after.
        ratio: compressed estimate over reference estimate; None where the latter is zero.
        prompts: number of prompts.
        samples: weighted texts a prompt.
        plain_samples: plain texts a prompt.
        max_new_tokens: longest text; longer ones are judged as far as they were written.
        mix: probability of a token from the proposal.
        switch: position from which the target writes alone.
        temperature: of the distributions whose tail this is.
        seed: of every random number.
        stop: tokens that end a text.
    """

    reference: ModelTail
    compressed: ModelTail
    ratio: float | None
    prompts: int
    samples: int
    plain_samples: int
    max_new_tokens: int
    mix: float
    switch: int
    temperature: float
    seed: int
    stop: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as dictionaries, lists and numbers."""
        return asdict(self)


def tail_risk(
    reference: Network,
    compressed: Network,
    prompts: Sequence[str],
    bad: Callable[[str], float],
    *,
    samples: int = 200,
    plain_samples: int | None = None,
    max_new_tokens: int = 64,
    mix: float = 0.5,
    switch: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    proposal: Network | None = None,
    tokenizer: Tokenizer | None = None,
    stop: Collection[int] | None = None,
    sampling: ImportanceSampling | None = None,
) -> TailRisk:
    """Estimate and bound how bad the texts of two models are on average, where bad ones are rare.

    Two models are in memory at a time. `mix`, `switch` and the proposal are to be chosen on other samples (another
    seed, other prompts): chosen on these, they bias the estimate towards zero.

    Args:
        reference: network before.
        compressed: network after.
        prompts: texts to continue; a tokenizer's own first token is added, as transformers does.
        bad: judges a new text, without the prompt and the token that ended it; 0 is good, 1 is bad.
        samples: weighted texts a prompt and model, 2 or more.
        plain_samples: plain texts a prompt and model for the certificate; as many as `samples` if None.
        max_new_tokens: to write at most, 1 or more.
        mix: probability of a token from the proposal, in [0, 1); 0 makes all weights one.
        switch: first position, counted from 0, at which the target writes alone; None for never.
        temperature: of target and proposal alike, > 0; the tail is that of the tempered model.
        seed: of every random number.
        proposal: a network that misbehaves more often, such as a more compressed sibling; used for both models. If
            None, the compressed network is the proposal for the reference, and has none itself.
        tokenizer: that of the reference if None.
        stop: tokens that end a text; those of the reference's configuration if None.
        sampling: confidence, bootstrap and limits.

    Raises:
        InvalidMethod: an argument outside its range.
        InvalidText: no prompts, or one the models cannot read or have no room after.
        InvalidModel: the models' vocabularies differ.
        InvalidMeasurement: a judgement outside [0, 1], or logits that are not finite.
    """
    switch = max_new_tokens if switch is None else switch
    plain_samples = samples if plain_samples is None else plain_samples
    _check(samples, plain_samples, max_new_tokens, mix, switch, temperature)
    if isinstance(prompts, str) or not prompts:
        raise InvalidText(
            "no prompts", expected="a list of one text or more", mend="pass prompts=[...]", site=SITE
        )  # fmt: skip
    tokenizer = load_tokenizer(reference.source) if tokenizer is None else tokenizer
    ends = tuple(sorted(stop_ids(reference.source) if stop is None else stop))
    sampling = ImportanceSampling() if sampling is None else sampling
    cuts = [tokenizer.encode(prompt).ids for prompt in prompts]

    def tail(target: Resident, other: Resident | None, name: str) -> ModelTail:
        judged: dict[str, list[list[float]]] = {"plain": [], "weighted": []}
        logs: list[tuple[Tensor, Tensor]] = []
        weighted = other is not None and mix > 0 and switch > 0
        for index, prompt in enumerate(cuts):
            for purpose, count in (("plain", plain_samples), ("weighted", samples)):
                if purpose == "weighted" and not weighted and samples == plain_samples:
                    judged[purpose].append(judged["plain"][-1])  # the same distribution: no need to write it again
                    logs.append((torch.zeros(samples).double(), torch.zeros(samples).double()))
                    continue
                # no model's name in it: with the same random numbers for both, their difference has less noise
                uniforms = torch.rand(
                    count, max_new_tokens, dtype=torch.float64, generator=stream(seed, SITE, purpose, str(index))
                )
                drawn = write(
                    target, other if purpose == "weighted" else None, prompt, uniforms,
                    mix=mix, switch=switch, temperature=temperature, stop=ends,
                )  # fmt: skip
                judged[purpose].append([_judge(bad, tokenizer, tokens, ends) for tokens in drawn.tokens])
                if purpose == "weighted":
                    logs.append((drawn.log_target, drawn.log_proposal))
        p, q = (torch.cat([pair[side] for pair in logs]) for side in (0, 1))
        badness = torch.tensor(judged["weighted"], dtype=torch.float64)
        parts = (p - q).exp() * badness.flatten()
        plain = tuple(value for of_prompt in judged["plain"] for value in of_prompt)
        return ModelTail(
            proposal=name if weighted else "none",
            estimate=sampling.estimate(p.numpy(), q.numpy(), badness.flatten().numpy(), seed=seed),
            certificate=sampling.certify(plain),
            by_prompt=tuple(parts.view(len(cuts), samples).mean(1).tolist()),
            plain=plain,
        )

    with ExitStack() as first:
        helper = first.enter_context(resident(proposal)) if proposal is not None else None
        with ExitStack() as second:
            before = second.enter_context(resident(reference))
            for prompt in cuts:
                before.checked(prompt, max_new_tokens)
            other = helper or second.enter_context(resident(compressed))
            of_reference = tail(before, other, "sibling" if helper else "compressed")
        with resident(compressed) as after:
            of_compressed = tail(after, helper, "sibling")
    common = of_reference.estimate.value
    return TailRisk(
        reference=of_reference, compressed=of_compressed,
        ratio=of_compressed.estimate.value / common if common > 0 else None, prompts=len(cuts), samples=samples,
        plain_samples=plain_samples, max_new_tokens=max_new_tokens, mix=mix, switch=switch, temperature=temperature,
        seed=seed, stop=ends,
    )  # fmt: skip


def _judge(bad: Callable[[str], float], tokenizer: Tokenizer, tokens: list[int], ends: Sequence[int]) -> float:
    text = tokenizer.decode(tokens[:-1] if tokens[-1] in ends else tokens, skip_special_tokens=False)
    value = float(bad(text))
    if not 0 <= value <= 1:
        raise InvalidMeasurement(
            f"a text was judged {value}", expected="a number from 0 (good) to 1 (bad)",
            mend="scale what `bad` returns", site=SITE,
        )  # fmt: skip
    return value


def _check(samples: int, plain: int, longest: int, mix: float, switch: int, temperature: float) -> None:
    for name, value, right, expected in (
        ("samples", samples, samples >= 2, "2 or more"),
        ("plain_samples", plain, plain >= 1, "1 or more"),
        ("max_new_tokens", longest, longest >= 1, "1 or more"),
        ("mix", mix, 0 <= mix < 1, "at least 0 and below 1: the proposal must be able to write all the target can"),
        ("switch", switch, switch >= 0, "0 or more"),
        ("temperature", temperature, 0 < temperature < math.inf, "above 0; greedy text has no tail to sample"),
    ):
        if not right:
            raise InvalidMethod(
                f"{name} is {value}", expected=expected, mend=f"set {name} inside this range", site=SITE
            )  # fmt: skip
