"""The three texts of a run, disjoint by document: for methods, for the search, and for the certificate alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pennyweight.corpus import (
    Windows,
    check_disjoint,
    cut,
    describe_source,
    fingerprint_of,
    read_documents,
    require_windows,
    split_documents,
)
from pennyweight.errors import InvalidModel
from pennyweight.network.network import Network
from pennyweight.network.sources.tokenizer import load_tokenizer, separator_id
from pennyweight.numerics.hashing import of_value
from pennyweight.numerics.random import permutation

LEAST = {"calibration": 4, "selection": 8, "certification": 20}  # windows below which a split says too little
PURPOSE = {
    "calibration": "calibrating", "selection": "choosing between candidates", "certification": "certifying a loss",
}  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Windows of the three splits.

    Args:
        calibration: for methods.
        selection: for the search.
        certification: for the claim alone.
        opened: hash of the whole text that the certification split is part of.
    """

    calibration: Windows
    selection: Windows
    certification: Windows
    opened: str

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes by split."""
        return {split: getattr(self, split).fingerprint for split in LEAST}


def texts(
    network: Network,
    calibration: str | Path | None,
    held_out: str | Path | None,
    *,
    length: int,
    count: int,
    selection: int,
    seed: int = 0,
    apart: bool = False,
) -> Texts:
    """Read, split and cut the texts of a run.

    One text is split in three by the hash of its documents. With both, the calibration text serves calibration and
    selection, and the held-out text is kept whole for the certificate.

    Args:
        network: whose tokenizer is used.
        calibration: path of a text; None for the one every Python carries.
        held_out: path of a text only the certificate may see; None to split the other one.
        length: tokens in a window.
        count: calibration windows at most.
        selection: selection windows at most.
        seed: of the choice of windows, where a split has more than that.
        apart: whether no window of selection and certification reaches into a second document.

    Raises:
        InvalidText: a text that cannot be read, is too short, or is not disjoint from the other.
    """
    first = calibration if calibration is not None or held_out is None else held_out
    documents = read_documents(first)
    source = describe_source(first)
    if calibration is not None and held_out is not None:
        last = read_documents(held_out)
        check_disjoint(documents, last)
        parts = split_documents(documents, shares={"calibration": 0.7, "selection": 0.3})
        parts["certification"] = last
        sources = {"calibration": source, "selection": source, "certification": describe_source(held_out)}
    else:
        parts = split_documents(documents)
        sources = dict.fromkeys(LEAST, source)
    tokenizer = load_tokenizer(network.source)
    separator = separator_id(network.source, tokenizer)
    cuts = {}
    for split, least in LEAST.items():
        whole = cut(
            parts[split], tokenizer, length=length, split=split, source=sources[split], separator=separator,
            apart=apart and split != "calibration",
        )  # fmt: skip
        require_windows(whole, least, PURPOSE[split])
        check_vocabulary(whole, network)
        cuts[split] = whole
    return Texts(
        some(cuts["calibration"], count, seed), some(cuts["selection"], selection, seed), cuts["certification"],
        fingerprint_of(documents if held_out is None or calibration is None else last),
    )  # fmt: skip


def check_vocabulary(windows: Windows, network: Network) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        InvalidModel: the tokenizer is another model's.
    """
    rows = min((site.shape[0] for site in network.sites if site.role == "embedding"), default=0)
    highest = int(windows.ids.max())
    if rows and highest >= rows:
        raise InvalidModel(
            f"the tokenizer gives token {highest} and the embedding has {rows} rows",
            expected="the tokenizer this model was trained with", mend="take tokenizer.json from the same release",
            site=str(network.source.path),
        )  # fmt: skip


def some(windows: Windows, count: int, seed: int) -> Windows:
    """A random choice of windows, in the order of the text; all of them if there are no more."""
    if len(windows) <= count:
        return windows
    chosen = sorted(permutation(len(windows), seed, windows.split, windows.fingerprint)[:count].tolist())
    return replace(
        windows, ids=windows.ids[chosen], documents=windows.documents[chosen],
        ends=None if windows.ends is None else windows.ends[chosen],
        fingerprint=of_value([windows.fingerprint, chosen]),
    )  # fmt: skip
