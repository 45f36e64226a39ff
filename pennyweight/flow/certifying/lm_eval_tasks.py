"""Tasks of lm-evaluation-harness as ours: the contexts and continuations that its own Python API builds.

Source: Gao et al. The Language Model Evaluation Harness. 2024. doi:10.5281/zenodo.12608602; its API in version 0.4.13.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pennyweight.errors import InvalidText, MissingExtra, UnknownName
from pennyweight.task import Question, Task, make_task

OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE")
FLAGS = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)
FEW_SHOT_SEED = 1234  # of the harness, for the examples it draws


def lm_eval_task(
    name: str, *, include: str | Path | None = None, limit: int | None = None, download: bool = False
) -> Task:
    """Read a multiple-choice task of lm-evaluation-harness.

    Contexts hold its prompt and its few-shot examples; continuations are its strings to the letter.

    Args:
        name: of the task, as its `--tasks` takes it.
        include: directory with further task files (YAML).
        limit: first questions only; None for all.
        download: whether it may fetch data; otherwise they have to be on this machine.

    Raises:
        MissingExtra: lm_eval is not installed.
        UnknownName: it knows no such task.
        InvalidText: a task of another kind, one whose data are not here, or one with questions that ours cannot hold.
    """
    with _offline(not download):
        task = _loaded(name, include)
        return make_task(_questions(task, name, limit), f"{name} (lm-evaluation-harness)")


def _loaded(name: str, include: str | Path | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra(
            f"lm_eval cannot be imported: {error}", expected="lm-evaluation-harness 0.4.13 or later",
            mend="pip install lm_eval, or write the questions to a .jsonl file", site=name,
        ) from error  # fmt: skip
    manager = TaskManager(include_path=None if include is None else str(include))
    if name not in manager.all_subtasks:
        raise UnknownName(
            f"lm-evaluation-harness knows no single task {name!r}", expected="the name of a task, not of a group",
            mend="lm_eval ls subtasks lists them; include=... adds a directory of your own", site=name,
        )  # fmt: skip
    try:
        return manager.load(name)["tasks"][name]
    except Exception as error:  # datasets raises many kinds for data that are not here
        raise InvalidText(
            f"the task cannot be loaded: {type(error).__name__}: {error}", expected="data on this machine",
            mend="fetch it once with lm_eval itself, or pass download=True", site=name,
        ) from error  # fmt: skip


def _questions(task: Any, name: str, limit: int | None) -> Iterator[Question]:
    if task.OUTPUT_TYPE != "multiple_choice" or getattr(task, "multiple_input", 0):
        raise InvalidText(
            f"its output type is {task.OUTPUT_TYPE}", expected="multiple_choice, with one context a question",
            mend="write its questions to a .jsonl file without choices", site=name,
        )  # fmt: skip
    task.set_fewshot_seed(seed=FEW_SHOT_SEED)
    task.build_all_requests(limit=limit)
    by_document: dict[int, list[Any]] = {}
    for request in task.instances:
        by_document.setdefault(request.doc_id, []).append(request)
    delimiter = str(task.config.target_delimiter)
    for number, requests in sorted(by_document.items()):
        choices = task.doc_to_choice(requests[0].doc)
        # Requests beyond the choices score them without a context, for a metric that is not ours.
        pairs = [request.args[:2] for request in sorted(requests, key=lambda request: request.idx)][: len(choices)]
        gold = task.doc_to_target(requests[0].doc)
        gold = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
        site = f"{name}, question {number + 1}"
        if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
            raise InvalidText(
                f"its answer is {gold!r}, and there are {len(choices)} choices",
                expected="the index or the text of one choice", mend="leave the question out", site=site,
            )  # fmt: skip
        if [text for _, text in pairs] != [delimiter + choice for choice in choices] or not pairs[0][0].strip():
            raise InvalidText(
                f"the context {pairs[0][0][-40:]!r} goes on as {[text for _, text in pairs]}",
                expected="a context with text in it, and the delimiter before each choice",
                mend="write its questions to a .jsonl file", site=site,
            )  # fmt: skip
        yield Question(question=pairs[0][0], choices=tuple(choices), answer=gold, delimiter=delimiter)


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Keep the libraries under the harness off the network."""
    kept: list[tuple[Any, str, Any]] = []
    before = {key: os.environ.get(key) for key in OFFLINE}
    if wanted:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))  # for those that are imported from now on
        for module, name in FLAGS:  # and for those that have read their environment already
            if module in sys.modules:
                kept.append((sys.modules[module], name, getattr(sys.modules[module], name, False)))
                setattr(sys.modules[module], name, True)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)
        for key, text in before.items():
            if text is not None:
                os.environ[key] = text
            else:
                os.environ.pop(key, None)
