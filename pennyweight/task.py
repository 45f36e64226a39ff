"""Questions with answers, read from a task file, and their choices as token ids.

A task file is JSON lines: `{"question": ..., "choices": [...], "answer": ...}` for multiple choice, or without choices
for answers that a model writes. The rules of scoring are those of lm-evaluation-harness (Gao et al. 2024,
doi:10.5281/zenodo.12608602), read in its version 0.4.13.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pennyweight.errors import InvalidMeasurement, InvalidText, MissingFile
from pennyweight.numerics.hashing import of_value

KNOWN = ("question", "choices", "answer", "delimiter", "cluster")  # every other field is a label
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
EXAMPLE = '{"question": "The capital of France is", "choices": ["Paris", "Rome"], "answer": "Paris"}'


@dataclass(frozen=True, kw_only=True)
class Question:
    """One unit of a task.

    Args:
        question: what the model reads.
        choices: the possible continuations, without delimiter; empty where the model writes the answer.
        answer: index of the right choice, or the text that is right.
        delimiter: stands between question and choice.
        cluster: questions with the same one are not independent, such as those on one passage; None for one alone.
        labels: other fields of the record, to group by: language, subject.
    """

    question: str
    choices: tuple[str, ...] = ()
    answer: int | str
    delimiter: str = " "
    cluster: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Questions of one kind.

    Args:
        questions: in the order of the file.
        kind: `choice` (pick one of the choices) or `match` (write the answer).
        source: name of the file, in words for a certificate.
        fingerprint: sha256 of everything in the questions; the name of the file does not count.
    """

    questions: tuple[Question, ...]
    kind: str
    source: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def documents(self) -> NDArray[np.int64]:
        """Index of the cluster of each question; one without a cluster is a cluster by itself."""
        numbers: dict[tuple[str, str], int] = {}
        keys = [("alone", str(i)) if q.cluster is None else ("of", q.cluster) for i, q in enumerate(self.questions)]
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)

    def take(self, chosen: Iterable[int]) -> Task:
        """The task of some of its questions, by their index, in the order given."""
        return make_task((self.questions[int(i)] for i in chosen), self.source)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one model says to one question.

    Args:
        log_likelihoods: of each choice after the question, nats.
        characters: length of each choice in Unicode code points, delimiter not counted.
        byte_lengths: length of each choice in bytes of UTF-8, delimiter not counted.
        text: what the model wrote, where there are no choices.

    Raises:
        InvalidMeasurement: a log-likelihood is NaN or above every finite number, or none is finite.
    """

    log_likelihoods: tuple[float, ...] = ()
    characters: tuple[int, ...] = ()
    byte_lengths: tuple[int, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        values = self.log_likelihoods
        # -inf alone is an answer: the model rules this choice out.
        if values and (any(math.isnan(v) or v == math.inf for v in values) or max(values) == -math.inf):
            raise InvalidMeasurement(
                f"log-likelihoods of choices are {list(values)}", expected="numbers, at least one of them finite",
                mend="look at this question: the model overflows on it, or its weights are damaged",
            )  # fmt: skip

    @classmethod
    def of_choices(cls, log_likelihoods: Sequence[float], choices: Sequence[str]) -> Answers:
        """Log-likelihoods with the lengths of the choices they belong to."""
        return cls(
            log_likelihoods=tuple(float(value) for value in log_likelihoods),
            characters=tuple(len(choice) for choice in choices),
            byte_lengths=tuple(len(choice.encode()) for choice in choices),
        )

    def chosen(self, lengths: Sequence[int] | None = None) -> int:
        """Choice with the highest log-likelihood, divided by lengths if they are given; the first of equals."""
        likelihoods = np.array(self.log_likelihoods, dtype=np.float64)
        return int(np.argmax(likelihoods if lengths is None else likelihoods / np.array(lengths, dtype=np.float64)))


def make_task(questions: Iterable[Question], source: str) -> Task:
    """A task of questions that were made by hand or by another tool.

    Raises:
        InvalidText: no question, or both kinds of question.
    """
    made = tuple(questions)
    if not made:
        raise InvalidText(
            "there is no question in it", expected="one JSON record a line", mend=f"for example {EXAMPLE}", site=source
        )
    kinds = ["choice" if question.choices else "match" for question in made]
    if len(set(kinds)) > 1:
        other = next(i for i, kind in enumerate(kinds) if kind != kinds[0])
        raise InvalidText(
            f"question 1 is of kind {kinds[0]} and question {other + 1} of kind {kinds[other]}",
            expected="choices in every record, or in none", mend="make two files of it", site=source,
        )  # fmt: skip
    content = [[q.question, q.choices, q.answer, q.delimiter, q.cluster, dict(q.labels)] for q in made]
    return Task(questions=made, kind=kinds[0], source=source, fingerprint=of_value(["task", *content]))


def read_task(path: str | Path) -> Task:
    """Read a task file.

    Args:
        path: JSON lines. `answer` is the index of the right choice from 0, its text, or its letter (A, B, ...), in that
            order of precedence; without `choices` it is the text that is right. `delimiter` stands between question and
            choice (a space), `cluster` names what several questions share. Any other text or number is a label.

    Raises:
        MissingFile: there is no such file.
        InvalidText: not UTF-8, not JSON, or a record that is not a question; the line is named.
    """
    place = Path(path)
    if not place.is_file():
        raise MissingFile(
            "there is no such file", expected="a .jsonl file, one question a line", mend="check the path",
            site=str(place),
        )  # fmt: skip
    try:
        text = place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidText(
            f"it is not UTF-8: {error.reason} at byte {error.start}", expected="JSON lines in UTF-8",
            mend="convert it, for example with iconv -t utf-8", site=str(place),
        ) from error  # fmt: skip
    questions: list[Question] = []
    seen: dict[tuple[str, ...], int] = {}
    first_kind: tuple[bool, int] | None = None
    # Not splitlines: JSON strings may hold the other characters that Unicode counts as ends of lines.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{place}, line {number}"
        question = _question(_record(line, where), where)
        kind = bool(question.choices)
        if first_kind is None:
            first_kind = kind, number
        elif kind != first_kind[0]:
            raise InvalidText(
                f"this record has {'' if kind else 'no '}choices, unlike line {first_kind[1]}",
                expected="choices in every record, or in none", mend="make two files of it", site=where,
            )  # fmt: skip
        # The order of choices does not make another question of it.
        key = (" ".join(question.question.split()), *sorted(question.choices))
        if key in seen:
            raise InvalidText(
                f"the question of line {seen[key]} stands here again",
                expected="every question once: counted twice, it would pass for independent evidence",
                mend="leave one of the two lines out", site=where,
            )  # fmt: skip
        seen[key] = number
        questions.append(question)
    return make_task(questions, place.name)


def encode_choice(
    tokenizer: Tokenizer, question: Question, choice: str, *, limit: int, site: str = ""
) -> tuple[list[int], int]:
    """Token ids of question and choice, and how many of them, at the end, belong to the choice.

    White space that ends the question counts to the choice; the two are encoded as one text, and what stands after as
    many tokens as the question alone has is the choice. Special tokens are those the tokenizer puts there by itself.
    What is longer than the model can read loses tokens of the question from the left.

    Args:
        tokenizer: of the model.
        question: read first.
        choice: one of its choices.
        limit: most tokens the model reads; the last token is predicted and not read.
        site: what an error is about.

    Raises:
        InvalidText: the question has no token, the choice has none of its own, or more than the model can read.
    """
    context = question.question.rstrip()
    continuation = question.question[len(context) :] + question.delimiter + choice
    prefix = encode_text(tokenizer, context)
    whole = encode_text(tokenizer, context + continuation)
    count = len(whole) - len(prefix)
    if not prefix or not 0 < count <= limit:
        raise InvalidText(
            f"the question has {len(prefix)} tokens and the choice {choice!r} adds {count}",
            expected=f"at least one token each, and at most {limit} of the choice",
            mend="change the question, or the delimiter between question and choice", site=site,
        )  # fmt: skip
    return whole[-(limit + 1) :], count


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text, with the special tokens that the tokenizer adds by itself."""
    special = tokenizer.encode("").ids  # what the tokenizer adds to any text, such as <s>
    # A text that brings its own <s> does not get a second one.
    twice = bool(special) and text.startswith(tokenizer.decode(special[:1], skip_special_tokens=False))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=not twice).ids
    return ids


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_once)
        json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair, written as \\ud800, is no text
    except (ValueError, RecursionError) as error:
        raise InvalidText(
            f"cannot read this line as JSON: {error}", expected="one JSON record a line",
            mend=f"for example {EXAMPLE}", site=where,
        ) from error  # fmt: skip
    if not isinstance(record, dict):
        raise _wrong(f"this line holds {_called(record)}", "a record in braces", where)
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return record


def _question(record: dict[str, Any], where: str) -> Question:
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        raise _wrong(f"`question` is {_called(question)}", "a text with something in it", where)
    delimiter = record.get("delimiter", " ")
    if not isinstance(delimiter, str):
        raise _wrong(f"`delimiter` is {_called(delimiter)}", "a text, which may be empty", where)
    cluster = record.get("cluster")
    choices = _choices(record["choices"], where) if "choices" in record else ()
    answer = _answer(record.get("answer"), choices, where)
    return Question(
        question=question, choices=choices, answer=answer, delimiter=delimiter,
        cluster=None if cluster is None else _label("cluster", cluster, where),
        labels={name: _label(name, value, where) for name, value in record.items() if name not in KNOWN},
    )  # fmt: skip


def _choices(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice for choice in value):
        raise _wrong(f"`choices` is {_called(value)}", "a list of texts, none of them empty", where)
    if len(value) < 2:
        raise _wrong(f"there are {len(value)} choices", "at least two, or no field `choices`", where)
    if len(set(value)) < len(value):
        twice = next(choice for choice in value if value.count(choice) > 1)
        raise _wrong(f"the choice {twice!r} stands there twice", "every choice once", where)
    return tuple(value)


def _answer(value: Any, choices: tuple[str, ...], where: str) -> int | str:
    if not choices:
        if not isinstance(value, str) or not value.strip():
            raise _wrong(f"`answer` is {_called(value)}", "a text, since there are no choices", where)
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    if isinstance(value, str) and len(value) == 1 and value in LETTERS[: len(choices)]:
        return LETTERS.index(value)
    last = len(choices) - 1
    letters = f", or a letter from A to {LETTERS[last]}" if last < len(LETTERS) else ""
    raise _wrong(
        f"the answer {value!r} is not among the {len(choices)} choices",
        f"the index of a choice from 0 to {last}, its exact text{letters}", where,
    )  # fmt: skip


def _label(name: str, value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return str(value).lower() if isinstance(value, bool) else str(value)
    raise _wrong(f"the field {name!r} is {_called(value)}", "a text or a finite number, to group by", where)


def _called(value: Any) -> str:
    kinds = {dict: "a record", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    if value is None:
        return "missing or null"
    content = json.dumps(value, ensure_ascii=False)
    return f"{kinds[type(value)]}, {content if len(content) <= 60 else content[:57] + '...'}"


def _wrong(happened: str, expected: str, where: str) -> InvalidText:
    return InvalidText(happened, expected=expected, mend=f"for example {EXAMPLE}", site=where)
