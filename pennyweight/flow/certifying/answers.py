"""Score two models on the questions of a task: log-likelihoods of choices, or answers they write.

Rules of lm-evaluation-harness 0.4.13 (Gao et al. 2024, doi:10.5281/zenodo.12608602): a choice is read after its
question, and its log-likelihood is the sum over its own tokens; a written answer is greedy and ends at an empty line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pennyweight import catalogue
from pennyweight.budget import Measurement
from pennyweight.errors import InvalidMeasurement, InvalidModel, InvalidText
from pennyweight.flow.journal import Journal
from pennyweight.flow.measure import ROWS, Runner, runner_of, tokens_at_once
from pennyweight.flow.progress import Advance
from pennyweight.flow.sampling.generate import Resident, resident, stop_ids
from pennyweight.network.network import Network
from pennyweight.network.sources.tokenizer import load_tokenizer
from pennyweight.numerics.hashing import of_value
from pennyweight.task import Answers, Task, encode_choice, encode_text

LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")  # where configurations say what a model can read
USUAL_LENGTH = 2048  # tokens, where they do not
STEP = 16  # lengths are padded to a multiple: a new shape costs a mask and position embeddings
WRITTEN = 32  # questions answered in writing with the weights read once

Choice = tuple[Sequence[int], int]  # token ids of question and choice, and how many of them are the choice's


@dataclass(frozen=True, eq=False)
class ReferenceAnswers:
    """Answers of the reference model, one file a batch, kept for every candidate.

    Args:
        journal: where they lie.
        key: folder in it; contains the hashes of model and task.
    """

    journal: Journal
    key: str
    _known: dict[tuple[str, int], Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for path in sorted((self.journal.directory / self.key).glob("*.json")):
            piece = self.journal.load(f"{self.key}/{path.name}")
            self._known.update({(piece["encoding"], int(i)): answer for i, answer in piece["answers"].items()})

    def missing(self, wanted: Sequence[int], encoding: str) -> list[int]:
        """Questions that nobody asked before in this encoding (tokens, and how answers are written)."""
        return [question for question in wanted if (encoding, question) not in self._known]

    def put(self, questions: Sequence[int], answers: Sequence[Answers], encoding: str) -> None:
        """Keep the answers to a batch of questions."""
        # JSON has no infinity: a choice that the model rules out is written as null.
        found = {
            str(question): answer.text
            if not answer.log_likelihoods
            else [value if math.isfinite(value) else None for value in answer.log_likelihoods]
            for question, answer in zip(questions, answers, strict=True)
        }
        name = f"{self.key}/{encoding[:16]}-{questions[0]:06d}.json"
        self.journal.save(name, {"encoding": encoding, "answers": found})
        self._known.update({(encoding, int(question)): answer for question, answer in found.items()})

    def get(self, question: int, choices: Sequence[str], encoding: str) -> Answers:
        """The answer to one question."""
        known = self._known[encoding, question]
        if isinstance(known, str):
            return Answers(text=known)
        return Answers.of_choices([-math.inf if value is None else value for value in known], choices)


@dataclass(eq=False)
class AnswerScorer:
    """Scores a compressed model against a reference on the questions of a task.

    Args:
        reference: network before; its tokenizer is used for both.
        compressed: network after, read from the files a user would ship.
        task: questions.
        answers: of the reference; shared between candidates.
        tokenizer: to use in place of the reference's own.
        metrics: what to compute; by default every metric of the catalogue that reads what the task is answered with.
        max_new_tokens: written at most where there are no choices; half of what the model can read if that is less.
        stop_strings: end a written answer and are not part of it.
    """

    reference: Network
    compressed: Network
    task: Task
    answers: ReferenceAnswers | None = None
    tokenizer: Tokenizer | None = None
    metrics: Sequence[Any] | None = None
    max_new_tokens: int = 256
    stop_strings: tuple[str, ...] = ("\n\n",)

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer = self.tokenizer or load_tokenizer(self.reference.source)
        reads = "choices" if self.task.kind == "choice" else "text"
        if self.metrics is None:
            self.metrics = [kind() for kind in catalogue.classes("measurement") if kind.reads == reads]
        self._before, self._after = runner_of(self.reference), runner_of(self.compressed)
        limit = min(longest(self.reference), longest(self.compressed))
        self._new = min(self.max_new_tokens, limit // 2)
        if self.task.kind == "choice":
            self._choices = encode_choices(self.task, tokenizer, limit)
            every: list[Sequence[int]] = [ids for question in self._choices for ids, _ in question]
        else:
            self._prompts = self._encode_prompts(tokenizer, limit - self._new)
            every = [*self._prompts]
        check_ids(every, (self.reference, self.compressed))
        settings = [] if reads == "choices" else [self._new, self.stop_strings]
        self._encoding = of_value([every, [len(question.choices) for question in self.task.questions], settings])
        self._documents = self.task.documents
        at_once = min(tokens_at_once(self.reference), tokens_at_once(self.compressed))
        self._batch = max(1, len(self.task) * at_once // sum(map(len, every)))

    @property
    def batch(self) -> int:
        """Questions scored at once."""
        return self._batch if self.task.kind == "choice" else WRITTEN

    def score(self, order: NDArray[np.int64], advance: Advance = lambda _=1: None) -> dict[str, Measurement]:
        """Every metric on some questions, in the order given.

        Raises:
            InvalidMeasurement: a model gives NaN or infinite scores.
        """
        scores: dict[str, list[tuple[float, float]]] = {metric.name: [] for metric in self.metrics or ()}
        for start in range(0, len(order), self.batch):
            chosen = [int(i) for i in order[start : start + self.batch]]
            before = self._of_reference(chosen)
            after = self._answer(self._after, chosen)
            for number, first, second in zip(chosen, before, after, strict=True):
                for metric in self.metrics or ():
                    scores[metric.name].append(metric.measure(first, second, self.task.questions[number]))
                advance(1)
        return {
            metric.name: self._measurement(metric.name, metric.unit, scores[metric.name], order)
            for metric in self.metrics or ()
        }

    def _measurement(
        self, name: str, unit: str, scores: list[tuple[float, float]], order: NDArray[np.int64]
    ) -> Measurement:
        columns = np.array(scores, dtype=np.float64).reshape(-1, 2)
        return Measurement(
            metric=name, unit=unit, reference=columns[:, 0], compressed=columns[:, 1], drawn=order.astype(np.int64),
            documents=self._documents[order], tokens=1, fingerprint=self.task.fingerprint,
        )  # fmt: skip

    def _of_reference(self, chosen: list[int]) -> list[Answers]:
        if self.answers is None:
            return self._answer(self._before, chosen)
        # A batch is written at once or not at all, so a resumed run computes in the same batches, to the same bits.
        missing = self.answers.missing(chosen, self._encoding)
        if missing:
            self.answers.put(missing, self._answer(self._before, missing), self._encoding)
        return [self.answers.get(i, self.task.questions[i].choices, self._encoding) for i in chosen]

    def _answer(self, runner: Runner, chosen: list[int]) -> list[Answers]:
        if self.task.kind == "match":
            with resident(runner.network) as model:
                return [self._write(model, self._prompts[number]) for number in chosen]
        flat = iter(log_likelihoods(runner, [choice for number in chosen for choice in self._choices[number]]))
        questions = [self.task.questions[number] for number in chosen]
        return [Answers.of_choices([next(flat) for _ in q.choices], q.choices) for q in questions]

    def _write(self, model: Resident, prompt: list[int]) -> Answers:
        assert self.tokenizer is not None
        new = model.continue_greedy(
            [prompt], self._new, stop_ids=stop_ids(model.network.source), stop_strings=self.stop_strings,
            tokenizer=self.tokenizer,
        )[0]  # fmt: skip
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        for stop in self.stop_strings:
            text = text.partition(stop)[0]
        return Answers(text=text)

    def _encode_prompts(self, tokenizer: Tokenizer, room: int) -> list[list[int]]:
        prompts = [encode_text(tokenizer, question.question)[-room:] for question in self.task.questions]
        for number, prompt in enumerate(prompts, start=1):
            if not prompt:
                raise InvalidText(
                    "the question has no token", expected="at least one", mend="leave it out",
                    site=f"{self.task.source}, question {number}",
                )  # fmt: skip
        return prompts


def longest(network: Network) -> int:
    """Tokens a model can read, as its configuration says."""
    config = network.source.config
    config = config.get("text_config") or config
    return next((int(config[key]) for key in LENGTH_KEYS if isinstance(config.get(key), int)), USUAL_LENGTH)


def encode_choices(task: Task, tokenizer: Tokenizer, limit: int) -> list[list[Choice]]:
    """Token ids of every choice of every question.

    Raises:
        InvalidText: a choice without a token of its own, or longer than the model can read.
    """
    return [
        [
            encode_choice(tokenizer, question, choice, limit=limit, site=f"{task.source}, question {number}")
            for choice in question.choices
        ]
        for number, question in enumerate(task.questions, start=1)
    ]


def check_ids(texts: Sequence[Sequence[int]], networks: Sequence[Network]) -> None:
    """Refuse token ids that a model has no embedding for.

    Raises:
        InvalidModel: the tokenizer is another model's.
    """
    highest = max(max(text) for text in texts)
    for network in networks:
        rows = min((site.shape[0] for site in network.sites if site.role == "embedding"), default=0)
        if rows and highest >= rows:
            raise InvalidModel(
                f"the tokenizer gives token {highest} and the embedding has {rows} rows",
                expected="the tokenizer this model was trained with", mend="take tokenizer.json from the same release",
                site=str(network.source.path),
            )  # fmt: skip


@torch.no_grad()
def log_likelihoods(runner: Runner, choices: Sequence[Choice]) -> list[float]:
    """Log-likelihood of each choice after its question, nats, summed in float64 over its tokens.

    What several choices share is computed once: a text that begins another gets no row of its own, since a causal model
    says the same at a position whatever comes after it. That also is why padding on the right changes nothing.

    Args:
        runner: of the model.
        choices: token ids of question and choice, and how many of them are the choice's.

    Raises:
        InvalidMeasurement: the model gives NaN.
    """
    read = [tuple(ids[:-1]) for ids, _ in choices]  # the last token is predicted and not read
    row_of = _rows(read)
    rows = sorted(set(row_of.values()))
    length = max(map(len, rows))
    length = min(-(-length // STEP) * STEP, max(length, longest(runner.network)))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    number = {row: i for i, row in enumerate(rows)}
    # Position t of a row predicts token t + 1; choices that share a question share the position of their first token.
    wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for choice, (tokens, count) in enumerate(choices):
        place = number[row_of[read[choice]]]
        for position in range(len(tokens) - count, len(tokens)):
            wanted.setdefault((place, position - 1), []).append((choice, tokens[position]))
    hidden = runner.forward(ids)
    sums = [0.0] * len(choices)
    with runner.end() as finish:
        for places in _parts(list(wanted), ROWS):
            at = torch.tensor(places)
            scores = finish(hidden[at[:, 0], at[:, 1]]).float().log_softmax(-1)
            for i, pair in enumerate(places):
                for choice, token in wanted[pair]:
                    sums[choice] += float(scores[i, token])
    if any(math.isnan(value) for value in sums):
        raise InvalidMeasurement(
            "a log-likelihood is NaN", expected="a number for every choice",
            mend="measure the model on text: it overflows, or its weights are damaged",
            site=str(runner.network.source.path),
        )  # fmt: skip
    return sums


def _rows(texts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For each text, the longest one that begins with it."""
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    kept: tuple[int, ...] = ()
    # In lexicographic order a text stands right before those that it begins, so going backwards they come first.
    for text in sorted(set(texts), reverse=True):
        if kept[: len(text)] != text:
            kept = text
        found[text] = kept
    return found


def _parts(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
