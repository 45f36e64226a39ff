"""Scores of questions against the model itself, run by transformers on one choice at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pennyweight.errors import InvalidMeasurement, InvalidModel, InvalidText
from pennyweight.flow.certifying import answers
from pennyweight.flow.certifying.answers import AnswerScorer, ReferenceAnswers, log_likelihoods
from pennyweight.flow.journal import Journal
from pennyweight.methods.measurement import Accuracy, ExactMatch
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network
from pennyweight.network.running.stream import Stream
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.tokenizer import load_tokenizer
from pennyweight.task import Question, Task, make_task

WORDS = ("tree", "blue", "wood", "4242", "grün")
Pair = tuple[Network, nn.Module, Network, nn.Module]


def quiz(count: int = 12) -> Task:
    """Questions of several lengths; the choices of some are single letters, so that they share all they read."""
    questions = []
    for i in range(count):
        choices = ("A", "B", "C") if i % 3 == 0 else tuple(WORDS[(i + k) % 5] for k in range(2 + i % 3))
        questions.append(
            Question(
                question=f"{i}. " + "why not " * (i % 4) + "this:", choices=choices, answer=i % len(choices),
                cluster="p" if i in (1, 2) else None,
            )
        )  # fmt: skip
    return make_task(questions, "quiz.jsonl")


@pytest.fixture(scope="module")
def pair(
    network_of: Callable[[str], Network],
    model_of: Callable[[str], nn.Module],
    save_model: Callable[[dict[str, Any], Path], nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    """A llama, and one whose weights are off by much."""
    directory = tmp_path_factory.mktemp("pair") / "changed"
    changed = save_model(model_of("llama").config.to_dict(), directory)  # type: ignore[union-attr,operator]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(changed.named_parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    changed.save_pretrained(directory)  # type: ignore[operator]
    return network_of("llama"), model_of("llama"), load_network(open_source(directory)), changed


def by_definition(model: nn.Module, network: Network, question: Question) -> list[float]:
    tokenizer = load_tokenizer(network.source)
    found = []
    for choice in question.choices:
        first = tokenizer.encode(question.question).ids
        second = tokenizer.encode(question.delimiter + choice).ids  # one token a byte: the parts of the whole
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([first + second]), use_cache=False).logits[0].double().log_softmax(-1)
        found.append(sum(float(scores[len(first) - 1 + k, token]) for k, token in enumerate(second)))
    return found


def test_scores_are_those_of_the_models(pair: Pair) -> None:
    before, model, after, changed = pair
    task = quiz()
    order = np.array([7, 0, 11, 3, 2, 1])
    found = AnswerScorer(before, after, task).score(order)
    assert set(found) == {"accuracy", "accuracy_bytes", "accuracy_norm", "answer_changes", "choice_brier", "flips"}
    for measurement in found.values():
        assert measurement.drawn.tolist() == order.tolist()
        assert measurement.documents.tolist() == [6, 0, 10, 2, 1, 1]
        assert measurement.tokens == 1
        assert measurement.fingerprint == task.fingerprint
    changes = 0
    for i, number in enumerate(order):
        question = task.questions[number]
        first, second = by_definition(model, before, question), by_definition(changed, after, question)
        right = [float(np.argmax(side) != question.answer) for side in (first, second)]
        assert [found["accuracy"].reference[i], found["accuracy"].compressed[i]] == right
        sizes = [len(choice.encode()) for choice in question.choices]
        assert found["accuracy_bytes"].reference[i] == float(np.argmax(np.divide(first, sizes)) != question.answer)
        changed_answer = float(np.argmax(first) != np.argmax(second))
        assert found["answer_changes"].degradation[i] == changed_answer
        changes += int(changed_answer)
    assert 0 < changes < len(order), "the case distinguishes nothing"


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "qwen3"])
def test_padding_and_shared_rows_change_nothing(
    family: str, network_of: Callable[[str], Network], model_of: Callable[[str], nn.Module]
) -> None:
    network, task = network_of(family), quiz(9)
    scorer = AnswerScorer(network, network, task)
    together = [scorer._answer(scorer._before, list(range(9)))]
    for number, answer in enumerate(together[0]):
        expected = by_definition(model_of(family), network, task.questions[number])
        assert answer.log_likelihoods == pytest.approx(expected, abs=2e-4)


def test_what_choices_share_is_read_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    network = pair[0]
    read: list[tuple[int, ...]] = []
    forward = Stream.forward

    def counted(self: Stream, ids: torch.Tensor) -> torch.Tensor:
        read.append(tuple(ids.shape))
        return forward(self, ids)

    monkeypatch.setattr(Stream, "forward", counted)
    # After 1, 2: tokens 3 and 4 alone, and 3 then 5. After 9: 6 then 7. Two rows hold all that is read.
    choices = [([1, 2, 3], 1), ([1, 2, 4], 1), ([1, 2, 3, 5], 2), ([9, 6, 7], 2)]
    found = log_likelihoods(Stream(network), choices)
    assert read == [(2, answers.STEP)]
    alone = [log_likelihoods(Stream(network), [choice])[0] for choice in choices]
    assert found == pytest.approx(alone, abs=1e-5)


def test_a_model_against_itself(network_of: Callable[[str], Network]) -> None:
    network = network_of("qwen2")
    for measurement in AnswerScorer(network, network, quiz()).score(np.arange(12)).values():
        assert measurement.degradation.tolist() == [0.0] * 12


def test_answers_of_the_reference_are_kept(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _, after, _ = pair
    task, journal = quiz(), Journal(tmp_path)
    whole = AnswerScorer(before, after, task).score(np.arange(12))
    scorer = AnswerScorer(before, after, task, ReferenceAnswers(journal, "reference/x"))
    first = scorer.score(np.array([4, 1]))
    assert len(list((tmp_path / "reference/x").glob("*.json"))) == 1
    second = scorer.score(np.array([1, 0, 5]))
    again = AnswerScorer(before, after, task, ReferenceAnswers(journal, "reference/x"))
    kept = again._before
    answer = again._answer

    def only_compressed(runner: Stream, chosen: list[int]) -> Any:
        assert runner is not kept, "the reference was asked again"
        return answer(runner, chosen)

    monkeypatch.setattr(again, "_answer", only_compressed)
    third = again.score(np.array([5, 4]))
    for name, expected in whole.items():
        for found in (first, second, third):
            np.testing.assert_allclose(found[name].reference, expected.reference[found[name].drawn], atol=1e-5)
            np.testing.assert_allclose(found[name].compressed, expected.compressed[found[name].drawn], atol=1e-5)
    # Another way to encode is another answer, though model and questions are the same.
    other = AnswerScorer(before, after, quiz(13), ReferenceAnswers(journal, "reference/x"))
    assert other.answers is not None
    assert other.answers.missing([4], other._encoding) == [4]


def test_a_choice_that_is_ruled_out_survives_the_journal(tmp_path: Path) -> None:
    from pennyweight.task import Answers

    kept = ReferenceAnswers(Journal(tmp_path), "x")
    kept.put([3], [Answers.of_choices([-1.5, -float("inf")], ("a", "é"))], "e" * 64)
    again = ReferenceAnswers(Journal(tmp_path), "x").get(3, ("a", "é"), "e" * 64)
    assert again == Answers(log_likelihoods=(-1.5, -float("inf")), characters=(1, 1), byte_lengths=(1, 2))


def test_written_answers_are_those_of_transformers(pair: Pair, tmp_path: Path) -> None:
    before, model, after, changed = pair
    tokenizer = load_tokenizer(before.source)
    prompts = ["2 + 2 =", "The capital of France is"]

    def written(which: nn.Module, prompt: str) -> str:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        for _ in range(12):
            with torch.no_grad():
                ids = torch.cat([ids, which(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)[None]], dim=1)
        return str(tokenizer.decode(ids[0, -12:].tolist())).partition("\n\n")[0]

    expected = [[written(which, prompt) for prompt in prompts] for which in (model, changed)]
    # The reference is right about the first question by construction, and about the second wrong.
    task = make_task(
        [Question(question=prompts[0], answer=expected[0][0]), Question(question=prompts[1], answer="never")], "quiz"
    )
    kept = ReferenceAnswers(Journal(tmp_path), "x")
    scorer = AnswerScorer(before, after, task, kept, max_new_tokens=12)
    for _ in range(2):
        found = scorer.score(np.array([1, 0]))
        assert set(found) == {"exact_match"}
        assert found["exact_match"].reference.tolist() == [1, 0]
        assert found["exact_match"].compressed.tolist() == [1, float(expected[1][0] != expected[0][0])]
    strict = AnswerScorer(before, after, task, max_new_tokens=12, metrics=[ExactMatch(strip=False)], stop_strings=())
    assert strict.score(np.array([1]))["exact_match"].degradation.tolist() == [0]
    piece = json.loads(next((tmp_path / "x").glob("*.json")).read_text())
    assert piece["answers"] == {"0": expected[0][0], "1": expected[0][1]}


def test_a_metric_may_be_chosen(pair: Pair) -> None:
    found = AnswerScorer(pair[0], pair[2], quiz(), metrics=[Accuracy()]).score(np.arange(3))
    assert list(found) == ["accuracy"]


def test_a_model_that_overflows_is_refused(pair: Pair, tmp_path: Path, save_model: Any) -> None:
    before, model, _, _ = pair
    broken = save_model(model.config.to_dict(), tmp_path / "broken")  # type: ignore[union-attr,operator]
    with torch.no_grad():
        broken.get_parameter("lm_head.weight").fill_(3e38)
    broken.save_pretrained(tmp_path / "broken")
    scorer = AnswerScorer(before, load_network(open_source(tmp_path / "broken")), quiz(3))
    with pytest.raises(InvalidMeasurement, match="NaN"):
        scorer.score(np.arange(3))


def test_questions_that_cannot_be_read(pair: Pair, save_model: Any, model_of: Any, tmp_path: Path) -> None:
    before = pair[0]
    long = make_task([Question(question="a", choices=("b" * 256, "c"), answer=0)], "quiz.jsonl")
    with pytest.raises(InvalidText, match="adds 257") as error:
        AnswerScorer(before, before, long)
    assert error.value.site == "quiz.jsonl, question 1"
    config = {**model_of("llama").config.to_dict(), "vocab_size": 40}
    save_model(config, tmp_path / "small")
    with pytest.raises(InvalidModel, match="has 40 rows"):
        AnswerScorer(before, load_network(open_source(tmp_path / "small")), quiz(2))
