"""Task files: what is read, what is refused with the line named, and how a choice becomes tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from pennyweight.errors import InvalidText, MissingFile
from pennyweight.task import Question, encode_choice, make_task, read_task

GOOD: dict[str, Any] = {"question": "Two and two is", "choices": ["four", "five"], "answer": 0}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(*records: Any, name: str = "quiz.jsonl") -> Path:
        lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return tmp_path / name

    return put


def test_answers_by_index_text_and_letter(write: Write) -> None:
    task = read_task(
        write(
            {**GOOD, "answer": 1},
            {**GOOD, "question": "b", "answer": "five"},
            "",
            {**GOOD, "question": "c", "answer": "B"},
            {**GOOD, "question": "d", "choices": ["B", "A"], "answer": "A"},
        )
    )
    assert [question.answer for question in task.questions] == [1, 1, 1, 1], "a text goes before a letter"
    assert task.kind == "choice"
    assert task.source == "quiz.jsonl"
    assert len(task) == 4
    assert task.questions[0] == Question(question="Two and two is", choices=("four", "five"), answer=1)


def test_other_fields_are_labels_and_clusters_are_documents(write: Write) -> None:
    task = read_task(
        write(
            {**GOOD, "language": "en", "level": 3, "cluster": "p1"},
            {**GOOD, "question": "b", "delimiter": ""},
            {**GOOD, "question": "c", "cluster": "p1", "level": 0.5},
            {**GOOD, "question": "d", "cluster": "0"},
        )
    )
    assert task.questions[0].labels == {"language": "en", "level": "3"}
    assert task.questions[1].delimiter == ""
    assert task.documents.tolist() == [0, 1, 0, 2]
    part = task.take([3, 0])
    assert [question.question for question in part.questions] == ["d", "Two and two is"]
    assert part.documents.tolist() == [0, 1]
    assert part.fingerprint != task.fingerprint


def test_written_answers(write: Write) -> None:
    task = read_task(write({"question": "2 + 2 =", "answer": "4"}))
    assert task.kind == "match"
    assert task.questions[0].answer == "4"
    assert task.questions[0].choices == ()


def test_the_fingerprint_is_of_the_content(write: Write) -> None:
    first = read_task(write(GOOD))
    assert read_task(write("", json.dumps(GOOD), name="other.jsonl")).fingerprint == first.fingerprint
    for change in ({"answer": 1}, {"delimiter": ""}, {"choices": ["four", "six"]}, {"language": "en"}, {"cluster": 1}):
        assert read_task(write({**GOOD, **change})).fingerprint != first.fingerprint, change


def test_unusual_ends_of_lines_and_a_mark_at_the_start(tmp_path: Path) -> None:
    line = json.dumps({**GOOD, "question": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    assert read_task(tmp_path / "t.jsonl").questions[0].question == "a\u2028b"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({**GOOD, "answer": 2}, "not among the 2 choices"),
        ({**GOOD, "answer": -1}, "not among"),
        ({**GOOD, "answer": "C"}, "'C' is not among"),
        ({**GOOD, "answer": "1"}, "not among"),
        ({**GOOD, "answer": True}, "not among"),
        ({**GOOD, "answer": 0.0}, "not among"),
        ({**GOOD, "answer": None}, "not among"),
        ({**GOOD, "choices": []}, "there are 0 choices"),
        ({**GOOD, "choices": ["four"]}, "there are 1 choices"),
        ({**GOOD, "choices": ["four", "four"]}, "'four' stands there twice"),
        ({**GOOD, "choices": ["four", ""]}, "`choices` is a list"),
        ({**GOOD, "choices": ["four", 5]}, "`choices` is a list"),
        ({**GOOD, "choices": "four"}, "`choices` is a text"),
        ({**GOOD, "choices": None}, "`choices` is missing or null"),
        ({**GOOD, "question": 5}, "`question` is a number"),
        ({**GOOD, "question": "  "}, "`question` is a text"),
        ({"choices": ["a", "b"], "answer": 0}, "`question` is missing"),
        ({"question": "2 + 2 =", "answer": 4}, "`answer` is a number"),
        ({"question": "2 + 2 =", "answer": " "}, "`answer` is a text"),
        ({**GOOD, "delimiter": 1}, "`delimiter` is a number"),
        ({**GOOD, "tags": ["a"]}, "'tags' is a list"),
        ({**GOOD, "level": None}, "'level' is missing or null"),
        ([GOOD], "this line holds a list"),
        ("five", "cannot read this line as JSON"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 0, "level": NaN}', "NaN is not a number"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 0, "level": 1e999}', "'level' is a number"),
        ('{"question": "a", "question": "b", "answer": "c"}', "'question' stands there twice"),
        ('{"question": "\\ud800", "answer": "c"}', "cannot read this line"),
        ({**GOOD, "question": "Two  and two is ", "choices": ["five", "four"]}, "question of line 1 stands here again"),
        ({"question": "2 + 2 =", "answer": "4"}, "no choices, unlike line 1"),
    ],
)
def test_a_bad_line_is_named(write: Write, record: Any, said: str) -> None:
    with pytest.raises(InvalidText) as error:
        read_task(write(GOOD, "", record))
    assert said in error.value.happened
    assert error.value.site.endswith("quiz.jsonl, line 3")
    assert error.value.expected
    assert error.value.mend


def test_files_that_are_no_tasks(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InvalidText, match="no question"):
        read_task(write("", "  "))
    with pytest.raises(MissingFile):
        read_task(tmp_path / "nothing.jsonl")
    with pytest.raises(MissingFile):
        read_task(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"question": "größer"}'.encode("latin-1"))
    with pytest.raises(InvalidText, match="not UTF-8"):
        read_task(tmp_path / "latin.jsonl")
    with pytest.raises(InvalidText, match="of kind choice"):
        make_task([Question(question="a", choices=("b", "c"), answer=0), Question(question="a", answer="b")], "made")


def pairs() -> Tokenizer:
    """One token a byte, but `b` after a space is one token with it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(" ")[0][0]
    vocabulary = {character: i for i, character in enumerate([*alphabet, f"{space}b", "<s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(space, "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def encoded(tokenizer: Tokenizer, question: str, choice: str, *, limit: int = 50, **more: str) -> tuple[str, str]:
    asked = Question(question=question, choices=(choice, "other"), answer=0, **more)  # type: ignore[arg-type]
    ids, count = encode_choice(tokenizer, asked, choice, limit=limit)
    parts = (ids[:-count], ids[-count:])
    first, second = (tokenizer.decode(part, skip_special_tokens=False) for part in parts)
    return first, second


def test_the_space_before_a_choice_belongs_to_it() -> None:
    tokenizer = pairs()
    assert encoded(tokenizer, "a:", "bc") == ("a:", " bc")
    assert encoded(tokenizer, "a: ", "bc", delimiter="") == ("a:", " bc")
    assert encoded(tokenizer, "a:\n", "bc") == ("a:", "\n bc")
    assert encoded(tokenizer, "a:", "bc", delimiter="") == ("a:", "bc")
    ids, count = encode_choice(tokenizer, Question(question="a:", choices=("b", "c"), answer=0), "b", limit=9)
    assert (len(ids), count) == (3, 1)


def test_long_questions_lose_their_beginning() -> None:
    # The last token is predicted and not read, so limit + 1 tokens are kept.
    assert encoded(pairs(), "abcdefgh", "ij", limit=6) == ("efgh", " ij")
    assert encoded(pairs(), "abcdefgh", "ijklm", limit=6) == ("h", " ijklm")
    with pytest.raises(InvalidText, match="adds 7"):
        encoded(pairs(), "abcdefgh", "ijklmn", limit=6)


def test_special_tokens_are_those_of_the_tokenizer() -> None:
    tokenizer = pairs()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    assert encoded(tokenizer, "a:", "bc") == ("<s>a:", " bc")
    assert encoded(tokenizer, "<s>a:", "bc") == ("<s>a:", " bc"), "not twice"
