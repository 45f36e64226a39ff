"""Write a model that is compressed already as files of another kind, and say of every tensor whether it changed.

Formats that hold a tensor's very numbers are looked for first (`choose.py`), the files are read back and compared with
the source tensor by tensor (`compare.py`), and both are run. Where every number is equal, what was certified of the
source holds for the files too (`carry.py`); where not, the difference is measured, and certified again if a reference
is at hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pennyweight.corpus import Windows
from pennyweight.errors import (
    InvalidFormat,
    InvalidModel,
    InvalidOutput,
    NotEquivalent,
    UnknownName,
    VerificationFailed,
)
from pennyweight.export.accounting import Accounting
from pennyweight.export.engines import ENGINES, Engine
from pennyweight.export.files import FILES, Files, rounding_files
from pennyweight.flow import artifact
from pennyweight.flow.certifying.pair import Judging, certify_pair
from pennyweight.flow.converting import carry
from pennyweight.flow.converting.choose import Choice, check_method, choose
from pennyweight.flow.converting.compare import Row, numbers_hash, rows_of, totals
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.load import check_pair, load
from pennyweight.flow.make_plan import check_files, usual_dtype
from pennyweight.flow.measure import measure
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.steps import sample
from pennyweight.flow.verify import verify
from pennyweight.formats.passing import Activations
from pennyweight.network.network import Network
from pennyweight.network.running.onnx import OnnxSource
from pennyweight.network.running.rounding import roundings_of
from pennyweight.network.running.run import change, outputs
from pennyweight.network.sources.opening import find_model
from pennyweight.numerics.hashing import canonical

SAME_FUNCTION = 1e-5  # relative; equal weights, the same code, and only the order of sums may differ
UNCERTIFIED, CARRIED, AGAIN, NONE = "not certified", "carried over", "certified again", "the source has none"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is converted.

    Args:
        dtype: of the model and of scales without a type of their own; None for the first in which fewest sites are
            rounded: the usual 16-bit type, the other one, float32.
        method: quantizer by which sites are rounded that must be.
        strict: refuse to round anything.
        windows: of the text on which a changed model is measured.
        length: tokens in each.
    """

    dtype: str | None = None
    method: str = "round_to_nearest"
    strict: bool = False
    windows: int = 16
    length: int = 256


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written.

    Args:
        out: the directory, or the file.
        engine: it is for.
        dtype: of the model.
        rows: one for every tensor.
        kl: of the source's distributions from those of the files, nats per token; zero where every number is equal.
        certificate: `carried over`, `certified again`, `not certified`, or `the source has none`.
        statement: of the certificate, where there is one.
        outcome: of certifying again.
        bytes_before: of the source's weight files.
        bytes_after: of the files.
        unrounded: what the source rounds while it runs and these files do not say, such as `int8 token`.
    """

    out: Path
    engine: str
    dtype: str
    rows: tuple[Row, ...]
    kl: float
    certificate: str
    statement: str
    outcome: Outcome | None
    bytes_before: int
    bytes_after: int
    unrounded: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every number is equal, and what is rounded while they run."""
        return all(row.exact for row in self.rows) and not self.unrounded


def convert(
    model: str | Path,
    out: str | Path,
    *,
    to: str,
    settings: Settings | None = None,
    text: str | Path | None = None,
    reference: str | Path | None = None,
    sealed: bool = False,
    allow_network: bool = False,
    progress: Progress = QUIET,
) -> Converted:
    """Write a model as files of another kind; `out` appears by one rename, read back and compared.

    Args:
        model: an artifact, a directory or file of any maker that `load` reads, or a hub id with `allow_network`.
        out: directory to make, which must not exist or be empty; or a file, for kinds that are one file.
        to: a kind of files (its first engine is meant) or an engine.
        settings: everything else.
        text: on which a changed model is measured; None for the one every Python carries.
        reference: the model before compression: certifies changed files again, on the limits of the source's
            certificate, into `out` + `.certificate`.
        sealed: refuse anything but an artifact of ours.
        allow_network: whether a hub id may be downloaded.
        progress: told about every stage.

    Raises:
        UnknownName: no such kind or engine.
        InvalidOutput: `out` is not free.
        InvalidFormat: the engine takes no such type; or, if `strict`, something must be rounded.
        InvalidModel: the source cannot be read or has no tensors, or the engine does not know its family.
        VerificationFailed: the artifact is damaged, or the files do not hold what they should.
        NotEquivalent: the files compute something else although every number is equal.
    """
    settings = settings or Settings()
    engine, place, source = target(to), Path(out), find_model(model, allow_network=allow_network)
    check_method(settings.method)
    is_file = _check_out(place, engine)
    claim = _claim(source, sealed)
    network = load(source)
    if isinstance(network.source, OnnxSource):
        raise InvalidModel(
            "a program, whose tensors we do not read", expected="a model with weights", site=str(source),
            mend="convert the model it was exported from",
        )  # fmt: skip
    if reference is not None:
        _check_reference(reference, claim, network, allow_network)
    dtypes = [settings.dtype] if settings.dtype else _dtypes(network, engine)
    check_files(network, engine, dtypes[0])
    choice = choose(network, engine, dtypes, settings.method, progress)
    engine.files.check(network, choice.formats, choice.dtype)
    files, unrounded = _running(choice)
    if settings.strict:
        _refuse_rounding([*choice.rounded, *unrounded], engine, choice.dtype)
    windows = _windows(choice, text, settings, changed=bool(unrounded))
    with _staged(place) as staged:
        accounting = _write(choice, files, staged, progress)
        written = load(staged)
        with progress.stage("reading back", written.source.stored_bytes) as advance:
            rows = rows_of(choice, written, advance)
        exact = all(row.exact for row in rows) and not unrounded
        if settings.strict:
            _refuse_rounding([row.name for row in rows if not row.exact], engine, choice.dtype)
        kl = 0.0 if exact else _kl(network, written, windows, progress)
        if exact:
            _check_function(network, written)
        done = Converted(
            out=place, engine=engine.name, dtype=choice.dtype, rows=rows, kl=kl, outcome=None,
            certificate=NONE if claim is None else CARRIED if exact else UNCERTIFIED,
            statement=claim.certificate.statement if claim is not None and exact else "",
            bytes_before=network.source.stored_bytes, bytes_after=artifact.size_on_disk(staged),
            unrounded=unrounded,
        )  # fmt: skip
        record = _record(done, choice, written, claim)
        if is_file:
            place.with_name(f"{place.name}.conversion.json").write_bytes(canonical(record))
            engine.files.handed(staged).rename(place)
        else:
            artifact.write_record(staged, carry.RECORD, record)
            artifact.write_record(staged, "accounting.json", accounting.to_dict())
            if claim is not None and exact:
                carry.keep(source, staged)
            artifact.seal(staged)
            if place.exists():
                place.rmdir()
            staged.rename(place)
    if reference is not None and claim is not None and not exact:
        return _certified_again(done, claim, reference, text, settings, allow_network, progress)
    return done


def target(to: str) -> Engine:
    """The engine that a name means: its own, or the first that reads files of this kind.

    Raises:
        UnknownName: neither kind nor engine is called so.
    """
    for engine in ENGINES:
        if to.lower() in (engine.file_format, engine.name):
            return engine
    raise UnknownName(
        f"no kind of files and no engine is called {to!r}",
        expected=f"one of {', '.join(FILES)}; or an engine: {', '.join(engine.name for engine in ENGINES)}",
        mend="--to gguf", site="--to",
    )  # fmt: skip


def _dtypes(network: Network, engine: Engine) -> list[str]:
    wanted = dict.fromkeys([usual_dtype(network), "float16", "bfloat16", "float32"])
    return [dtype for dtype in wanted if dtype in engine.dtypes]


def _check_out(out: Path, engine: Engine) -> bool:
    """Whether one file is wanted; refuses what is taken."""
    is_file = out.suffix.lower() in engine.files.suffixes
    if is_file and not engine.files.one_file:
        raise InvalidOutput(
            f"{engine.file_format} files are a directory", expected="a directory to make",
            mend=f"{out.with_suffix('')}", site=str(out),
        )  # fmt: skip
    if out.exists() and (is_file or not out.is_dir() or any(out.iterdir())):
        raise InvalidOutput(
            "the output directory is not empty" if out.is_dir() else "the output is a file",
            expected="a path that does not exist yet, or an empty directory", mend="choose another one, or remove it",
            site=str(out),
        )  # fmt: skip
    return is_file


def _claim(source: Path, sealed: bool) -> carry.Claimed | None:
    """What is certified of the source, whose seal and certificate are checked first; None where nothing is."""
    if not (source / artifact.SEAL).is_file():
        if sealed:
            raise VerificationFailed(
                "this is no artifact of pennyweight", expected="a directory that compress wrote",
                mend="pennyweight convert takes files of any maker", site=str(source),
            )  # fmt: skip
        return None
    if carry.is_converted(source):  # it may have no certificate, and then none to carry
        artifact.check_seal(source)
        if not carry.is_carried(source):
            return None
    verify(source)
    return carry.claimed(source)


def _check_reference(reference: str | Path, claim: carry.Claimed | None, network: Network, allow_network: bool) -> None:
    if claim is None:
        raise InvalidModel(
            "the source has no certificate whose limits could be certified again",
            expected="an artifact that compress wrote", mend="leave --reference out, and use pennyweight certify",
            site="--reference",
        )  # fmt: skip
    check_pair(load(reference, allow_network=allow_network), network)


def _refuse_rounding(names: list[str], engine: Engine, dtype: str) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InvalidFormat(
            f"{engine.name} has no room for the very numbers of {', '.join(names[:3])}{more} in {dtype}",
            expected="formats that hold every number", site="--strict",
            mend="leave --strict out, which measures what rounding costs; or --dtype float32; or another kind of files",
        )  # fmt: skip


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    staged = out.absolute().with_name(f".{out.name}.part")
    shutil.rmtree(staged, ignore_errors=True)  # of a call that was killed
    try:
        staged.mkdir(parents=True)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _running(choice: Choice) -> tuple[Files, tuple[str, ...]]:
    """Files that round while they run what the source rounds; and what it rounds that the engine cannot."""
    found, engine = roundings_of(choice.network.source), choice.engine
    if not isinstance(found, Activations) or not found:
        return engine.files, ()
    able = all(
        site in choice.formats and not engine.refuses_input(choice.formats[site], rounds.format)
        for site, rounds in found.inputs.items()
    ) and all(both.keys.format in engine.caches for both in found.caches.values())
    if able:
        return rounding_files(engine.files).rounding(found), ()
    labels = [rounds.format.label() for rounds in found.inputs.values()]
    labels += [f"a cache in {both.keys.format.label()}" for both in found.caches.values()]
    return engine.files, tuple(dict.fromkeys(labels))


def _write(choice: Choice, files: Files, staged: Path, progress: Progress) -> Accounting:
    with progress.stage("writing", len(choice.network.source.tensors)) as advance:
        accounting = files.write(
            choice.network, choice.formats, choice.compressed, staged, dtype=choice.dtype,
            on_tensor=lambda _name, _bytes: advance(1),
        )  # fmt: skip
    accounting.reconcile()
    return accounting


def _windows(choice: Choice, text: str | Path | None, settings: Settings, *, changed: bool) -> Windows | None:
    """What changed files will be measured on, so that a text or tokenizer that is amiss is known before work."""
    if not choice.rounded and not choice.may_cast and not changed:
        return None
    return sample(text, choice.network, count=settings.windows, length=settings.length, split="selection")


def _kl(before: Network, after: Network, windows: Windows | None, progress: Progress) -> float:
    assert windows is not None
    return float(measure(before, after, windows, progress=progress)["kl"].compressed.mean())


def _check_function(before: Network, after: Network) -> None:
    """See that equal numbers compute the same: config.json must have survived too."""
    first, second = outputs(before, exact=False), outputs(after, exact=False)
    moved = change(first, second) if first.shape == second.shape else float("inf")
    if not moved <= SAME_FUNCTION:
        raise NotEquivalent(
            f"every number is equal, and the outputs differ by {moved:.1e}, relative",
            expected="a configuration that these files can tell", mend="report this with the model's config.json",
            site=str(before.source.path),
        )  # fmt: skip


def _record(done: Converted, choice: Choice, written: Network, claim: carry.Claimed | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "engine": done.engine, "files": choice.engine.file_format, "dtype": done.dtype, "method": choice.method,
        "source": choice.network.source.description, "model": choice.network.source.fingerprint,
        "rows": [asdict(row) for row in done.rows], "totals": totals(done.rows), "exact": done.exact, "kl": done.kl,
        "unrounded": list(done.unrounded),
        "numbers": numbers_hash(written, [row.name for row in done.rows]), "code": artifact.code_hash(),
    }  # fmt: skip
    if claim is not None:
        told["certificate"] = {
            "carried": done.exact, "sha256": claim.sha256, "weights": claim.certificate.fingerprints.get("weights", ""),
            "statement": done.statement,
        }  # fmt: skip
    return told


def _certified_again(
    done: Converted, claim: carry.Claimed, reference: str | Path, text: str | Path | None, settings: Settings,
    allow_network: bool, progress: Progress,
) -> Converted:  # fmt: skip
    outcome = certify_pair(
        reference, done.out, done.out.with_name(f"{done.out.name}.certificate"),
        budgets=[budget for budget in claim.budgets if budget.is_claim], on=text,
        judging=Judging(length=settings.length), allow_network=allow_network, progress=progress,
    )  # fmt: skip
    return replace(
        done, outcome=outcome, certificate=AGAIN if outcome.holds else UNCERTIFIED,
        statement=outcome.certificate.statement,
    )  # fmt: skip
