"""The same questions, scored by lm-evaluation-harness and by us: equal, question by question.

Its own numbers are kept in tests/golden/lm_eval.json, so that they are compared where it is not installed, too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from golden import make_lm_eval
from tokenizers import Tokenizer
from torch import nn

from pennyweight.errors import InvalidText, MissingExtra, UnknownName
from pennyweight.flow.certifying.answers import AnswerScorer
from pennyweight.flow.certifying.lm_eval_tasks import lm_eval_task
from pennyweight.network.network import Network
from pennyweight.task import read_task

GOLDEN = Path(__file__).parents[1] / "golden" / "lm_eval.json"
NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm", "acc_bytes": "accuracy_bytes"}


def compare(network: Network, quiz: Path, results: list[dict[str, Any]]) -> None:
    scorer = AnswerScorer(network, network, read_task(quiz))
    for answer, theirs in zip(scorer._answer(scorer._before, list(range(len(results)))), results, strict=True):
        assert answer.log_likelihoods == pytest.approx(theirs["log_likelihoods"], abs=1e-3, rel=1e-5)
    found = scorer.score(np.arange(len(results)))
    for theirs, ours in NAMES.items():
        assert (1 - found[ours].reference).tolist() == [result[theirs] for result in results]


def test_we_score_as_the_harness_did(network_of: Callable[[str], Network], tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["questions"] == make_lm_eval.QUESTIONS
    columns = [[result[name] for result in golden["results"]] for name in NAMES]
    assert len({tuple(column) for column in columns}) == 3, "the questions tell the three ways to count apart"
    compare(network_of("llama"), make_lm_eval.write_task(tmp_path), golden["results"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_we_score_as_the_harness_does(
    network_of: Callable[[str], Network],
    model_of: Callable[[str], nn.Module],
    directory_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    quiz = make_lm_eval.write_task(tmp_path)
    task = lm_eval_task("tiny_quiz", include=tmp_path)
    mine = read_task(quiz)
    assert [(q.question, q.choices, q.answer, q.delimiter) for q in task.questions] == [
        (q.question, q.choices, q.answer, q.delimiter) for q in mine.questions
    ]
    tokenizer = Tokenizer.from_file(str(directory_of("llama") / "tokenizer.json"))
    results = make_lm_eval.by_harness(model_of("llama"), tokenizer, tmp_path)
    compare(network_of("llama"), quiz, results)
    assert lm_eval_task("tiny_quiz", include=tmp_path, limit=2).questions == task.questions[:2]
    with pytest.raises(UnknownName, match="no single task"):
        lm_eval_task("no_such_quiz", include=tmp_path)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks", raising=False)
    with pytest.raises(MissingExtra, match="cannot be imported"):
        lm_eval_task("arc_easy")


class Stub:
    """A task as the harness would load it: one question with two choices."""

    OUTPUT_TYPE = "multiple_choice"
    multiple_input = 0

    def __init__(self, **changes: Any) -> None:
        self.config = SimpleNamespace(target_delimiter=" ")
        self.gold: Any = 1
        self.context = "A context:"
        self.continuations = [" a", " b"]
        self.offline = ""
        self.__dict__.update(changes)

    def set_fewshot_seed(self, seed: int) -> None:
        self.seed = seed

    def build_all_requests(self, limit: int | None) -> None:
        self.offline = os.environ.get("HF_HUB_OFFLINE", "")
        self.instances = [
            SimpleNamespace(doc_id=0, idx=i, doc={}, args=(self.context, text))
            for i, text in reversed(list(enumerate(self.continuations)))
        ]

    def doc_to_choice(self, doc: Any) -> list[str]:
        return ["a", "b"]

    def doc_to_target(self, doc: Any) -> Any:
        return self.gold


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def put(task: Any) -> None:
        class Manager:
            all_subtasks = ("quiz",)

            def __init__(self, include_path: str | None) -> None: ...

            def load(self, name: str) -> dict[str, Any]:
                if isinstance(task, Exception):
                    raise task
                return {"tasks": {name: task}}

        package, tasks = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")
        tasks.TaskManager = Manager  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lm_eval", package)
        monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)

    return put


def test_requests_become_questions(stubbed: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for gold in (1, "b"):
        task = Stub(gold=gold)
        stubbed(task)
        found = lm_eval_task("quiz")
        assert [(q.question, q.choices, q.answer) for q in found.questions] == [("A context:", ("a", "b"), 1)]
        assert found.source == "quiz (lm-evaluation-harness)"
        assert task.offline == "1"
        assert os.environ["HF_HUB_OFFLINE"] == "0"
    stubbed(task)
    lm_eval_task("quiz", download=True)
    assert task.offline == "0"
    # Requests without a context, for mutual information, follow those of the choices.
    stubbed(Stub(continuations=[" a", " b", " a", " b"]))
    assert len(lm_eval_task("quiz").questions[0].choices) == 2


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Stub(OUTPUT_TYPE="generate_until"), "output type is generate_until"),
        (Stub(multiple_input=2), "output type"),
        (Stub(gold=2), "answer is 2"),
        (Stub(gold="c"), "answer is 'c'"),
        (Stub(gold=[0, 1]), r"answer is \[0, 1\]"),
        (Stub(continuations=[" a", " c"]), "goes on as"),
        (Stub(context=""), "goes on as"),
        (ConnectionError("no network"), "cannot be loaded: ConnectionError: no network"),
    ],
)
def test_tasks_that_ours_cannot_hold(stubbed: Callable[[Any], None], task: Any, said: str) -> None:
    stubbed(task)
    with pytest.raises(InvalidText, match=said):
        lm_eval_task("quiz")
    with pytest.raises(UnknownName):
        lm_eval_task("quizz")
