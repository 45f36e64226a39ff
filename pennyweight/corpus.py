"""Text into documents, documents into splits that share no text, splits into windows of token ids."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from pennyweight.errors import InvalidText, MissingFile

SHARES: Mapping[str, float] = {"calibration": 0.3, "selection": 0.15, "certification": 0.55}
SECTION = 8000  # characters; where a plain text is cut into documents
SHINGLE = 50  # words; a run this long in two texts is a copy, not a coincidence
OVERLAP = 0.05  # share of held-out shingles that may occur in calibration
CONTAINED = 0.5  # share of a document's shingles in larger ones that makes it a duplicate
SKETCH = 2_000_000  # words; above, only a fixed fraction of all shingles is compared
HEADING = re.compile(r"^ ?= (?!= )[^\n]*[^\n=] = ?$", re.MULTILINE)  # WikiText level 1; level 2 is " = = Title = = "


@dataclass(frozen=True)
class Document:
    """A text that stands for itself: no other document needs to be read with it.

    Args:
        name: where it is from.
        text: of it.
        labels: what else is known of it, such as its language; groups are made of these.
    """

    name: str
    text: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Windows:
    """Equal runs of token ids, cut from one split of a text.

    Args:
        ids: token ids.
        documents: index of the document each window starts in.
        names: of all documents of the split, by that index.
        source: what the text is, in words.
        split: `calibration`, `selection` or `certification`.
        fingerprint: sha256 of ids and split.
        dropped_tokens: in ragged tails, too short for a window.
        text_bytes: size of the text in UTF-8, tail included.
        labels: of all documents of the split.
        ends: index of the document each window ends in; None if that is the one it starts in.
    """

    ids: Int64[Tensor, "n length"]
    documents: Int64[Tensor, " n"]
    names: tuple[str, ...]
    source: str
    split: str
    fingerprint: str
    dropped_tokens: int
    text_bytes: int
    labels: tuple[Mapping[str, str], ...] = ()
    ends: Int64[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.ids.shape[1]


def describe_source(path: Path | str | None) -> str:
    """Say in words what `read_documents` reads from here; goes into the certificate."""
    if path is None:
        # The help topics are generated from the documentation of this very release, and change with it.
        return f"help topics of Python {platform.python_version()} (pydoc_data.topics)"
    return Path(path).name


def read_documents(path: Path | str | None = None) -> tuple[Document, ...]:
    """Read a text as documents.

    Args:
        path: a directory (every .txt and .md is a document), a .jsonl file (field `text`), a text file (cut at form
            feeds or <|endoftext|>, else at WikiText headings, else into sections of about 8 kB), or None for the help
            topics that come with Python.

    Raises:
        MissingFile: nothing is there.
        InvalidText: empty, binary, not UTF-8, or lines that are not what .jsonl should hold.
    """
    if path is None:
        from pydoc_data.topics import topics

        return tuple(Document(name, text) for name, text in sorted(topics.items()))
    place = Path(path)
    if not place.exists():
        raise MissingFile(
            "there is no such file or directory",
            expected="a .txt or .jsonl file, or a directory of .txt and .md files",
            mend="check the path, or leave it out to use the help topics that come with Python",
            site=str(place),
        )
    if place.is_dir():
        files = sorted(f for f in place.rglob("*") if f.suffix.lower() in {".txt", ".md"} and f.is_file())
        documents = [Document(f.relative_to(place).as_posix(), _read_text(f)) for f in files]
    elif place.suffix.lower() == ".jsonl":
        documents = list(_json_lines(_read_text(place), place))
    else:
        parts = _parts(_read_text(place))
        width = len(str(len(parts)))
        documents = [Document(f"{place.name}#{i:0{width}d}", part) for i, part in enumerate(parts, start=1)]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise InvalidText(
            "no .txt or .md file with text in it" if place.is_dir() else "there is no text in it",
            expected="at least a few documents of running text",
            mend="check the path, or leave it out to use the help topics that come with Python",
            site=str(place),
        )
    return tuple(documents)


def fingerprint_of(documents: Sequence[Document]) -> str:
    """Hash of a text: of its documents' words, in any order, however they are cut into windows later."""
    return hashlib.sha256("".join(sorted({_digest(document) for document in documents})).encode()).hexdigest()


def drop_duplicates(documents: Sequence[Document]) -> tuple[tuple[Document, ...], tuple[str, ...]]:
    """Leave out documents that repeat others, so that no text can reach two splits.

    A document goes when its text (white space aside) was there before, or when more than half of its runs of 50 words
    stand in larger documents: Python's help topics, for one, contain each other.

    Returns:
        What stays, in the order given, and one note for each document that went.
    """
    by_words: dict[str, Document] = {}
    notes = []
    for document in documents:
        words = _digest(document)
        if words in by_words:
            notes.append(f"{document.name} has the same text as {by_words[words].name}")
        else:
            by_words[words] = document
    unique = list(by_words.values())
    order = sorted(range(len(unique)), key=lambda i: (-len(unique[i].text), _digest(unique[i])))
    ranked = [unique[i] for i in order]
    sets = _shingle_sets(ranked)
    owners = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    shingles = np.concatenate([*sets, np.empty(0, np.uint64)])
    # A stable sort keeps the largest document first among those that share a shingle; the rest have a copy of it.
    by_value = np.argsort(shingles, kind="stable")
    copied = np.zeros(len(shingles), dtype=bool)
    copied[by_value[1:]] = shingles[by_value[1:]] == shingles[by_value[:-1]]
    copies = np.bincount(owners[copied], minlength=len(ranked))
    gone = {i for i, s in enumerate(sets) if copies[i] > CONTAINED * len(s)}
    notes += [f"{copies[i] / len(sets[i]):.0%} of {ranked[i].name} stands in larger documents" for i in sorted(gone)]
    kept = {id(document) for i, document in enumerate(ranked) if i not in gone}
    return tuple(document for document in unique if id(document) in kept), tuple(notes)


def split_documents(
    documents: Sequence[Document], *, salt: str = "", shares: Mapping[str, float] = SHARES
) -> dict[str, tuple[Document, ...]]:
    """Give every document to one split, by the hash of its text.

    Duplicates are left out first (`drop_duplicates` says which). The order given does not matter: documents are
    ordered by sha256(salt + sha256(text)) and fill the splits one after the other, by characters.

    Args:
        documents: of one text.
        salt: another one gives another split.
        shares: of the characters, in any unit, by split.

    Raises:
        InvalidText: fewer documents than splits.
    """
    unique, _ = drop_duplicates(documents)
    if len(unique) < len(shares):
        raise InvalidText(
            f"{len(unique)} document{'s' if len(unique) != 1 else ''} that do not repeat each other"
            f" cannot fill {len(shares)} splits ({', '.join(shares)})",
            expected=f"at least {len(shares)} documents, better a hundred",
            mend="use a longer text; a form feed or <|endoftext|> in a .txt file starts a new document",
            site="splitting the text",
        )
    ordered = sorted(unique, key=lambda d: hashlib.sha256((salt + _digest(d)).encode()).hexdigest())
    ends = np.cumsum([len(document.text) for document in ordered])
    centres = (ends - np.diff(ends, prepend=0) / 2) / ends[-1]  # a document goes where its middle falls
    limits = np.cumsum(list(shares.values())) / sum(shares.values())
    cuts = [0, *np.searchsorted(centres, limits[:-1]).tolist(), len(ordered)]
    for i in range(1, len(shares)):  # no split stays empty: every one before gets at least one, every one after too
        cuts[i] = min(max(cuts[i], cuts[i - 1] + 1), len(ordered) - (len(shares) - i))
    return {split: tuple(ordered[cuts[i] : cuts[i + 1]]) for i, split in enumerate(shares)}


def check_disjoint(calibration: Sequence[Document], held_out: Sequence[Document]) -> None:
    """Refuse a held-out text that the methods were shown.

    Raises:
        InvalidText: a held-out document occurs in calibration word for word, or more than 5 % of the runs of 50 words
            in the held-out text do.
    """
    known = {_digest(document): document.name for document in calibration}
    same = [(document.name, known[digest]) for document in held_out if (digest := _digest(document)) in known]
    if same:
        raise InvalidText(
            f"{len(same)} of {len(held_out)} held-out documents are also in the calibration text: "
            + _some([f"{a} = {b}" if a != b else a for a, b in same]),
            expected="held-out text that no method was shown",
            mend="give one text and let it be split by document, or take these documents out of one of the two",
            site="held-out text",
        )
    sets = _shingle_sets([*calibration, *held_out])
    seen = np.unique(np.concatenate([*sets[: len(calibration)], np.empty(0, np.uint64)]))
    counts = [(int(np.isin(s, seen).sum()), len(s)) for s in sets[len(calibration) :]]
    shared, total = sum(n for n, _ in counts), sum(n for _, n in counts)
    if shared > OVERLAP * total:
        worst = sorted(zip(counts, held_out, strict=True), key=lambda item: -item[0][0])
        names = [f"{document.name} ({n / of:.0%})" for (n, of), document in worst if n]
        raise InvalidText(
            f"{shared / total:.1%} of its runs of {SHINGLE} words stand in the calibration text: {_some(names)}",
            expected=f"at most {OVERLAP:.0%} in common",
            mend="give one text and let it be split by document, or take these documents out of one of the two",
            site="held-out text",
        )


def cut(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    length: int,
    split: str,
    source: str,
    separator: int | None = None,
    apart: bool = False,
) -> Windows:
    """Tokenise documents, join them, and cut equal windows; the ragged tail is left out and counted.

    Documents that are to be drawn as units, one window each, are cut apart: where windows are cut from the joined text,
    which documents hold a whole one depends on the lengths of those before.

    Args:
        documents: of one split, in the order they are joined.
        tokenizer: no special tokens are added by it.
        length: tokens in a window, > 0.
        split: name of the split.
        source: what the text is, in words.
        separator: token id between two documents; None joins them without.
        apart: cut every document by itself, without separators; the tail of each is left out.

    Raises:
        InvalidText: a window of no tokens.
    """
    if length < 1:
        raise InvalidText(f"windows of {length} tokens", expected="at least 1 token", mend="length=512", site=split)
    description = tokenizer.to_str()
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        tokenizer = Tokenizer.from_str(description)  # both would change the text, and the argument is not ours
        tokenizer.no_truncation()
        tokenizer.no_padding()
    pieces, owners, dropped = [], [], 0
    for i, document in enumerate(documents):
        # One at a time: the encodings of a whole corpus, with their strings, are many times larger than its ids.
        ids = np.array(tokenizer.encode_batch_fast([document.text], add_special_tokens=False)[0].ids, dtype=np.int64)
        if apart:
            dropped += len(ids) % length
            ids = ids[: len(ids) - len(ids) % length]
        elif separator is not None and i + 1 < len(documents):
            ids = np.append(ids, np.int64(separator))
        pieces.append(ids)
        owners.append(len(ids))
    tokens = np.concatenate([*pieces, np.empty(0, np.int64)])
    n = len(tokens) // length
    dropped += len(tokens) - n * length
    starts = np.arange(n) * length
    windows = torch.from_numpy(tokens[: n * length].reshape(n, length).copy())
    digest = hashlib.sha256()
    for part in (split, str(length)):  # not the name: a renamed file must not give another certification order
        digest.update(part.encode() + b"\0")
    digest.update(windows.numpy().astype("<i8").tobytes())
    return Windows(
        ids=windows,
        documents=torch.from_numpy(np.searchsorted(np.cumsum(owners), starts, side="right").astype(np.int64)),
        names=tuple(document.name for document in documents),
        source=source,
        split=split,
        fingerprint=digest.hexdigest(),
        dropped_tokens=dropped,
        text_bytes=sum(len(document.text.encode()) for document in documents),
        labels=tuple(document.labels for document in documents),
        ends=torch.from_numpy(np.searchsorted(np.cumsum(owners), starts + length - 1, side="right").astype(np.int64)),
    )


def require_windows(windows: Windows, needed: int, purpose: str) -> None:
    """Refuse a text that is too short for what it is needed for.

    Raises:
        InvalidText: fewer windows than needed; says how much text there is and how much that would take.
    """
    if len(windows) >= needed:
        return
    tokens = windows.ids.numel() + windows.dropped_tokens
    wanted = needed * windows.length
    size = windows.text_bytes / tokens if tokens else 4.0  # bytes a token; 4 is usual for English
    raise InvalidText(
        f"{purpose} needs {needed} windows of {windows.length} tokens and the {windows.split} split has {len(windows)}"
        f" ({tokens} tokens, {windows.text_bytes / 1000:.1f} kB)",
        expected=f"{wanted} tokens, about {wanted * size / 1000:.0f} kB in this split",
        mend="use a longer text, or shorter windows",
        site=windows.source,
    )


def _read_text(file: Path) -> str:
    """Read a file as UTF-8, with line ends as in Unix."""
    data = file.read_bytes()
    if b"\0" in data:
        raise InvalidText(
            f"binary: a NUL byte at offset {data.index(0)}",
            expected="a text file",
            mend="pass text; convert UTF-16 with iconv -f UTF-16 -t UTF-8",
            site=str(file),
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind a byte-order mark
        offset = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        raise InvalidText(
            f"not UTF-8: byte 0x{data[offset]:02x} at offset {offset}",
            expected="text in UTF-8",
            mend="convert it, for example with iconv -f LATIN1 -t UTF-8",
            site=str(file),
        ) from error


def _json_lines(text: str, file: Path) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = f"not JSON: {error}"
        else:
            if isinstance(value, dict) and isinstance(value.get("text"), str):
                labels = {k: str(v) for k, v in value.items() if k != "text" and isinstance(v, str | int | float)}
                yield Document(f"{file.name}#{number}", value["text"], labels)
                continue
            problem = "no string in a field `text`"
        raise InvalidText(
            f"line {number} has {problem}" if problem.startswith("no ") else f"line {number} is {problem}",
            expected='one JSON object a line, such as {"text": "..."}',
            mend="rename the field that holds the text to `text`",
            site=str(file),
        )


def _parts(text: str) -> list[str]:
    """Cut a text into documents; put together again, they are the text (form feeds and <|endoftext|> aside)."""
    marked = re.split(r"\f|<\|endoftext\|>", text)
    if sum(bool(part.strip()) for part in marked) > 1:
        return [part for part in marked if part.strip()]
    text = "".join(marked)
    headings = [match.start() for match in HEADING.finditer(text)]
    if len(headings) > 1:  # a single one is more likely an equation than a book of one article
        cuts = [0, *headings, len(text)]
        return [text[a:b] for a, b in pairwise(cuts) if text[a:b].strip()]
    return list(_sections(text))


def _sections(text: str) -> Iterator[str]:
    """Cut a plain text at the first blank line after 8000 characters; where none follows, at a line end or a space."""
    start = 0
    while len(text) - start > 2 * SECTION:
        end = start + SECTION
        for mark in ("\n\n", "\n", " ", ""):
            found = text.find(mark, start + SECTION, start + 2 * SECTION)
            if found >= 0:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end
    yield text[start:]


def _digest(document: Document) -> str:
    """Hash (sha256) the words of a document: line breaks and indentation do not make another text."""
    return hashlib.sha256(" ".join(document.text.split()).encode()).hexdigest()


def _shingle_sets(documents: Sequence[Document]) -> list[NDArray[np.uint64]]:
    """Hash every run of 50 words; a shorter document is one run.

    Source: Broder. On the resemblance and containment of documents. SEQUENCES 1997 (shingles, and keeping those that
    are 0 modulo m when there are many).

    Returns:
        For each document the distinct hashes, sorted.
    """
    known: dict[str, int] = {}
    counts = sum(document.text.count(" ") for document in documents)
    modulus = np.uint64(max(1, counts // SKETCH))
    powers = [pow(0x9E3779B97F4A7C15, SHINGLE - i, 1 << 64) for i in range(SHINGLE)]
    sets = []
    for document in documents:
        words = document.text.split()
        for word in words:
            if word not in known:
                # Python's own hash of a string differs from run to run.
                known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        hashes = np.array([known[word] for word in words], dtype=np.uint64)
        span = min(SHINGLE, len(hashes))
        runs = np.zeros(len(hashes) - span + 1, dtype=np.uint64)
        for i in range(span):  # a polynomial in the word hashes, modulo 2^64
            runs += hashes[i : i + len(runs)] * np.uint64(powers[i])
        runs ^= runs >> np.uint64(29)  # the low bits of a product depend on low bits only
        distinct = np.unique(runs)
        sample = distinct[distinct % modulus == 0]
        sets.append(sample if len(sample) else distinct[:1])
    return sets


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
