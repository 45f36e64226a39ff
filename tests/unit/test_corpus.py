"""Text, splits and windows: nothing is lost, nothing leaks, every bad file is named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pennyweight.corpus import (
    SECTION,
    Document,
    check_disjoint,
    cut,
    describe_source,
    drop_duplicates,
    read_documents,
    require_windows,
    split_documents,
)
from pennyweight.errors import InvalidText, MissingFile


def words(seed: int, count: int) -> str:
    return " ".join(f"w{n}" for n in random.Random(seed).choices(range(5000), k=count))


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_help_topics_are_the_default() -> None:
    documents = read_documents()
    assert len(documents) > 50
    assert {"if", "while"} <= {document.name for document in documents}
    assert "Python 3." in describe_source(None)
    assert describe_source("/some/where/text.txt") == "text.txt"


def test_help_topics_contain_each_other_and_their_splits_do_not() -> None:
    documents = read_documents()
    kept, notes = drop_duplicates(documents)
    assert len(kept) + len(notes) == len(documents)
    assert any("numeric-types" in note for note in notes)  # a section of specialnames
    assert drop_duplicates(kept) == (kept, ())
    splits = split_documents(documents)
    check_disjoint(splits["calibration"], splits["selection"] + splits["certification"])
    check_disjoint(splits["selection"], splits["certification"])
    with pytest.raises(InvalidText, match="stand in the calibration text"):
        check_disjoint(
            [d for d in documents if d.name == "specialnames"], [d for d in documents if d.name == "numeric-types"]
        )


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "d.bin").write_bytes(b"\0")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "e.txt").write_text("third\r\nline")
    assert [(d.name, d.text) for d in read_documents(tmp_path)] == [
        ("a.md", "first"), ("b.txt", "second"), ("deep/e.txt", "third\nline"),
    ]  # fmt: skip


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": "two\u2028more", "id": 3}\n', encoding="utf-8")
    assert [d.text for d in read_documents(file)] == ["one", "two\u2028more"]
    assert len({d.name for d in read_documents(file)}) == 2


@pytest.mark.parametrize("line", ["{", "[]", '{"content": "x"}', '{"text": 3}'])
def test_json_lines_name_the_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n\n' + line + "\n")
    with pytest.raises(InvalidText, match="line 3 ") as caught:
        read_documents(tmp_path / "t.jsonl")
    assert "text" in caught.value.expected


@pytest.mark.parametrize("mark", ["\f", "<|endoftext|>"])
def test_marked_documents(mark: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"one\n = A = \n = B = \n{mark}two{mark}\n{mark}three")
    assert [d.text.strip()[-5:].strip() for d in read_documents(tmp_path / "t.txt")] == ["= B =", "two", "three"]


def test_wikitext_headings(tmp_path: Path) -> None:
    text = " \n = First = \n \n text \n = = Part = = \n more \n = = = Deep = = = \n"
    text += " deep \n = Second article = \n \n end \n"
    (tmp_path / "t.txt").write_text(text)
    first, second = (d.text for d in read_documents(tmp_path / "t.txt"))
    assert first.startswith(" = First =")
    assert "Deep" in first
    assert second.startswith(" = Second article =")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["\n\n", "\n", " "]), st.integers(1, 3 * SECTION)), max_size=12))
def test_sections_are_the_text(pieces: list[tuple[str, int]]) -> None:
    from pennyweight.corpus import _parts

    text = "x" + "".join(mark + "y" * count for mark, count in pieces)
    parts = _parts(text)
    assert "".join(parts) == text
    assert all(0 < len(part) <= 2 * SECTION for part in parts)
    assert all(len(part) >= SECTION for part in parts[:-1])


def test_sections_end_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n\n".join([("line\n" * 300).strip()] * 40))
    documents = read_documents(tmp_path / "t.txt")
    assert len(documents) > 4
    assert all(d.text.endswith("\n\n") for d in documents[:-1])


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        read_documents(tmp_path / "nowhere.txt")
    with pytest.raises(InvalidText, match=r"no \.txt or \.md file"):
        read_documents(tmp_path)
    for name in ("t.txt", "t.jsonl"):
        (tmp_path / name).write_text("\n  \n")
        with pytest.raises(InvalidText, match="no text in it"):
            read_documents(tmp_path / name)


def test_binary_and_wrong_encoding(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes(b"abc\0def")
    with pytest.raises(InvalidText, match="NUL byte at offset 3"):
        read_documents(file)
    file.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InvalidText, match="byte 0xe9 at offset 3"):
        read_documents(file)
    file.write_bytes(b"\xef\xbb\xbfcaf\xe9 au lait")
    with pytest.raises(InvalidText, match="byte 0xe9 at offset 6"):
        read_documents(file)
    file.write_bytes(b"\xef\xbb\xbfgood")
    assert read_documents(file)[0].text == "good"


def test_duplicates_are_counted_once() -> None:
    texts = [words(i, 200) for i in range(5)]
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    copy = Document("copy", texts[0].replace(" ", "\n"))
    excerpt = Document("excerpt", " ".join(texts[1].split()[10:120]) + " and a few words of its own")
    kept, notes = drop_duplicates([*documents, copy, excerpt])
    assert kept == tuple(documents)
    assert notes[0] == "copy has the same text as d0"
    assert "excerpt" in notes[1]
    quoting = Document("quoting", " ".join(texts[1].split()[:80]) + " " + words(9, 200))  # a quotation is no copy
    assert drop_duplicates([*documents, quoting])[1] == ()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 60), min_size=3, max_size=40), st.text(max_size=3), st.randoms())
def test_splits_share_nothing_and_do_not_depend_on_order(seeds: list[int], salt: str, shuffler: random.Random) -> None:
    documents = [Document(f"d{seed}", words(seed, 5 + 9 * seed)) for seed in seeds]
    unique = set(seeds)
    if len(unique) < 3:
        with pytest.raises(InvalidText, match="cannot fill 3 splits"):
            split_documents(documents, salt=salt)
        return
    splits = split_documents(documents, salt=salt)
    assert [*splits] == ["calibration", "selection", "certification"]
    assert all(splits.values())
    names = [d.name for part in splits.values() for d in part]
    assert sorted(names) == sorted(f"d{seed}" for seed in unique)
    shuffler.shuffle(documents)
    assert split_documents(documents, salt=salt) == splits


def test_shares_are_of_characters_and_the_salt_matters() -> None:
    documents = [Document(f"d{i}", words(i, 50 + 7 * (i % 40))) for i in range(300)]
    splits = split_documents(documents)
    total = sum(len(d.text) for d in documents)
    for name, share in (("calibration", 0.3), ("selection", 0.15), ("certification", 0.55)):
        assert sum(len(d.text) for d in splits[name]) / total == pytest.approx(share, abs=0.01)
    assert split_documents(documents, salt="x") != splits
    halves = split_documents(documents, shares={"a": 1, "b": 1})
    assert sum(len(d.text) for d in halves["a"]) / total == pytest.approx(0.5, abs=0.01)


def test_check_disjoint() -> None:
    calibration = [Document(f"c{i}", words(i, 400)) for i in range(10)]
    held_out = [Document(f"h{i}", words(100 + i, 400)) for i in range(10)]
    check_disjoint(calibration, held_out)
    with pytest.raises(InvalidText, match="1 of 11 held-out documents are also in the calibration text: x = c3"):
        check_disjoint(calibration, [*held_out, Document("x", calibration[3].text + "\n")])
    quoted = Document("q", calibration[2].text + " and more")  # 9 % of all runs of 50 words
    with pytest.raises(InvalidText, match=r"9\.\d% of its runs of 50 words .*: q \(99%\)") as caught:
        check_disjoint(calibration, [*held_out, quoted])
    assert "5%" in caught.value.expected
    little = Document("l", " ".join(calibration[2].text.split()[:100]) + " " + words(77, 300))  # 1 %
    check_disjoint(calibration, [*held_out, little])
    check_disjoint([], held_out)
    check_disjoint(calibration, [])


def test_overlap_is_found_in_large_texts_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pennyweight.corpus.SKETCH", 1000)
    calibration = [Document("c", words(0, 8000))]
    check_disjoint(calibration, [Document("h", words(1, 8000))])
    with pytest.raises(InvalidText, match=r"1\d\.\d% of its runs"):
        check_disjoint(calibration, [Document("h", words(1, 7000) + " " + " ".join(words(0, 8000).split()[:1300]))])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text(max_size=30), max_size=6),
    st.integers(1, 9),
    st.sampled_from([None, 999]),
)
def test_windows_are_the_text(texts: list[str], length: int, separator: int | None) -> None:
    tokenizer = byte_tokenizer()
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    windows = cut(documents, tokenizer, length=length, split="s", source="t", separator=separator)
    tokens: list[int] = []
    owners: list[int] = []
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ids += [separator] if separator is not None and i + 1 < len(texts) else []
        tokens += ids
        owners += [i] * len(ids)
    assert windows.ids.shape == (len(tokens) // length, length)
    assert windows.ids.dtype == windows.documents.dtype == torch.int64
    assert windows.ids.flatten().tolist() == tokens[: len(windows) * length]
    assert windows.documents.tolist() == owners[: len(windows) * length : length]
    assert windows.dropped_tokens == len(tokens) % length
    assert windows.text_bytes == sum(len(text.encode()) for text in texts)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=30), max_size=6), st.integers(1, 9), st.sampled_from([None, 999]))
def test_documents_cut_apart_have_windows_of_their_own(texts: list[str], length: int, separator: int | None) -> None:
    """Every document of a window or more has one, whatever stands before it, and no window is of two."""
    tokenizer = byte_tokenizer()
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    windows = cut(documents, tokenizer, length=length, split="s", source="t", separator=separator, apart=True)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    expected = [(i, part[k : k + length]) for i, part in enumerate(ids) for k in range(0, len(part), length)]
    expected = [(i, part) for i, part in expected if len(part) == length]
    assert windows.ids.tolist() == [part for _, part in expected]
    assert windows.documents.tolist() == [i for i, _ in expected]
    assert windows.ends is not None
    assert windows.ends.tolist() == windows.documents.tolist()
    assert windows.dropped_tokens == sum(len(part) % length for part in ids)
    assert set(windows.documents.tolist()) == {i for i, part in enumerate(ids) if len(part) >= length}


def test_windows_fingerprint() -> None:
    documents = [Document("d", words(0, 100))]

    def fingerprint(**changes: object) -> str:
        arguments = {"tokenizer": byte_tokenizer(), "length": 8, "split": "a", "source": "b", **changes}
        return cut(documents, **arguments).fingerprint  # type: ignore[arg-type]

    other = byte_tokenizer()
    other.add_special_tokens(["<unused>"])
    seen = [fingerprint(), fingerprint(length=4), fingerprint(split="c")]
    assert len(set(seen)) == 3
    # the same tokens are the same windows, whatever the file is called: the certification order hangs on this
    assert fingerprint() == fingerprint(source="d") == fingerprint(tokenizer=other) == seen[0]


def test_truncation_in_the_tokenizer_does_not_shorten_the_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    windows = cut([Document("d", "x" * 20)], tokenizer, length=5, split="s", source="t")
    assert len(windows) == 4
    assert tokenizer.truncation is not None  # the argument is as it was


def test_require_windows() -> None:
    windows = cut([Document("d", "x" * 103)], byte_tokenizer(), length=10, split="certification", source="t.txt")
    require_windows(windows, 10, "certifying")
    with pytest.raises(InvalidText) as caught:
        require_windows(windows, 200, "certifying")
    assert "certifying needs 200 windows of 10 tokens" in str(caught.value)
    assert "has 10 (103 tokens, 0.1 kB)" in str(caught.value)
    assert caught.value.expected == "2000 tokens, about 2 kB in this split"
    with pytest.raises(InvalidText, match="windows of 0 tokens"):
        cut([], byte_tokenizer(), length=0, split="s", source="t")
    with pytest.raises(InvalidText, match="has 0"):
        require_windows(cut([], byte_tokenizer(), length=4, split="s", source="t"), 1, "calibration")


def test_a_large_text_is_quick_enough_to_read_as_json(tmp_path: Path) -> None:
    lines = [json.dumps({"text": words(i, 100)}) for i in range(300)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert len(split_documents(read_documents(tmp_path / "t.jsonl"))["certification"]) > 100
