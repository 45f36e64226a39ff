"""Write a continuation token by token, and beside it what another model writes to the same prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path

import torch
from tokenizers.decoders import DecodeStream

from pennyweight.errors import InvalidMethod
from pennyweight.flow.load import check_pair, load
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.sampling.generate import Resident, stop_ids
from pennyweight.flow.sampling.mixture import pick
from pennyweight.network.running.runnable import DTYPES, runnable
from pennyweight.network.sources.tokenizer import as_chat, load_tokenizer
from pennyweight.numerics.memory import peak, release
from pennyweight.numerics.random import stream

Say = Callable[[int, str], None]  # told which model, 0 or 1, and a piece of its text as soon as it is known


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one model wrote.

    Args:
        model: path.
        tokens: ids, with the one that ended the text.
        text: of them.
        ended: whether a token that ends texts was written.
        prompt_seconds: to read the prompt and choose the first token.
        token_seconds: median of the tokens after it; None where there are none.
        weights: bytes of weights in memory.
        peak: resident bytes of the process by then.
        held: how many weights are held how.
    """

    model: str
    tokens: list[int]
    text: str
    ended: bool
    prompt_seconds: float
    token_seconds: float | None
    weights: int
    peak: int
    held: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A continuation, and another beside it.

    Args:
        prompt: as it was read, chat template included.
        prompt_tokens: of it.
        dtype: of the arithmetic.
        written: by the model.
        beside: by the other one, if there was one.
        parts_at: first token, counted from 0, at which they differ; None where they do not.
        there: the token of each at that place, as text; empty where a text has ended.
    """

    prompt: str
    prompt_tokens: int
    dtype: str
    written: Written
    beside: Written | None = None
    parts_at: int | None = None
    there: tuple[str, str] | None = None


def run(
    model: str | Path,
    prompt: str,
    *,
    tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    beside: str | Path | None = None,
    chat: bool = False,
    dtype: str = "bfloat16",
    allow_network: bool = False,
    say: Say | None = None,
    progress: Progress = QUIET,
) -> Ran:
    """Continue a prompt; no code that lies beside a model is ever run.

    Args:
        model: whatever `load` reads, but for ONNX files.
        prompt: text; a tokenizer's own first token is added, as transformers does.
        tokens: to write at most.
        temperature: 0 for the likeliest token every time.
        seed: of the samples; both models use the same random numbers.
        beside: another model with the same vocabulary.
        chat: put the prompt into the model's chat template.
        dtype: of the arithmetic: bfloat16, in which kernels are quick, float16 or float32.
        allow_network: whether a hub id may be downloaded.
        say: told which model, 0 or 1, and each piece of text as soon as it is known.
        progress: told about reading weights.

    Raises:
        InvalidMethod: a temperature or dtype out of range.
        InvalidModel: it has no tokenizer, no chat template, or no weights that can be read.
        InvalidText: an empty prompt, or one that leaves no room.
        InvalidMeasurement: the two models do not read the same tokens, or logits are not finite.
    """
    if not 0 <= temperature < float("inf") or dtype not in DTYPES:
        raise InvalidMethod(
            f"temperature {temperature:g} in {dtype}", expected=f"0 or more, in {', '.join(DTYPES)}",
            mend="--temperature 0.7", site="run",
        )  # fmt: skip
    networks = [load(path, allow_network=allow_network) for path in (model, beside) if path is not None]
    check_pair(networks[0], networks[-1])
    source = networks[0].source
    tokenizer = load_tokenizer(source)
    given = as_chat(source, prompt) if chat else prompt
    ids = tokenizer.encode(given, add_special_tokens=not chat).ids
    uniforms = torch.rand(tokens, dtype=torch.float64, generator=stream(seed, "run"))
    done: list[Written] = []
    for network in networks:
        Resident(network, torch.nn.Module()).checked(ids, tokens)  # before weights are read
    for which, network in enumerate(networks):
        with progress.stage("reading weights", network.source.stored_bytes) as advance:
            made = runnable(network, getattr(torch, dtype), on_tensor=advance)
        decoder, pieces, written, seconds = DecodeStream(skip_special_tokens=True), [], [], [time.perf_counter()]
        ends = stop_ids(network.source)
        for token in continuation(Resident(network, made.model), ids, uniforms, temperature, ends):
            seconds.append(time.perf_counter())
            written.append(token)
            if (piece := decoder.step(tokenizer, token)) is not None:
                pieces.append(piece)
                if say:
                    say(which, piece)
        each = [after - before for before, after in pairwise(seconds[1:])]
        held = [row.held for row in made.ledger]
        done.append(
            Written(
                model=str(network.source.path), tokens=written, text="".join(pieces), ended=written[-1] in ends,
                prompt_seconds=seconds[1] - seconds[0],
                token_seconds=float(torch.tensor(each).median()) if each else None,
                weights=sum(row.bytes for row in made.ledger), peak=peak(),
                held={how: held.count(how) for how in sorted({*held})},
            )
        )  # fmt: skip
        del made
        release()
    at = parting(done[0].tokens, done[-1].tokens)
    there = None if at is None else tuple(tokenizer.decode(one.tokens[at : at + 1]) for one in done)
    return Ran(
        prompt=given, prompt_tokens=len(ids), dtype=dtype, written=done[0],
        beside=done[1] if len(done) > 1 else None, parts_at=at, there=None if there is None else (there[0], there[1]),
    )  # fmt: skip


def continuation(
    model: Resident, prompt: list[int], uniforms: torch.Tensor, temperature: float, stop: frozenset[int]
) -> Iterator[int]:
    """Tokens after a prompt, up to one that ends a text.

    Args:
        model: with weights in memory.
        prompt: token ids.
        uniforms: a random number in [0, 1) for every token there may be, float64.
        temperature: 0 for the likeliest, of equals the one with the lowest id.
        stop: tokens that end a text.
    """
    logits, cache = model.step(torch.tensor([prompt]))
    for position in range(len(uniforms)):
        if temperature == 0:
            token = int(logits[0].argmax())
        else:
            token = int(pick((logits.double() / temperature).log_softmax(-1), uniforms[position : position + 1])[0])
        yield token
        if token in stop or position + 1 == len(uniforms):
            return
        logits, cache = model.step(torch.tensor([[token]]), cache)


def parting(first: list[int], second: list[int]) -> int | None:
    """Where two texts differ first; None where they are the same."""
    pairs = enumerate(zip_longest(first, second))
    return next((at for at, (a, b) in pairs if a != b), None)
