"""What a run leaves: the files an engine loads, and beside them what is claimed of them, sealed by hashes.

small/config.json, model*.safetensors, tokenizer …      what the engine loads; or model.gguf alone
small/pennyweight/certificate.json                      the claim
small/pennyweight/evidence.json                         the scores it rests on
small/pennyweight/plan.toml, ledger.json, accounting.json, ladder.json
small/pennyweight/seal.json                             SHA-256 of every file above
small/pennyweight/timing.json, small/report.html        not sealed: seconds differ from run to run
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pennyweight.errors import VerificationFailed
from pennyweight.export import FILES
from pennyweight.flow.journal import disk_errors
from pennyweight.numerics.hashing import canonical, of_bytes, of_file, of_value

FOLDER = "pennyweight"
SEAL = f"{FOLDER}/seal.json"
WEIGHTS = tuple(dict.fromkeys(suffix for kind in FILES.values() for suffix in kind.suffixes))
UNSEALED = (f"{FOLDER}/timing.json", "report.html")


def files(directory: Path) -> dict[str, Path]:
    """Every file that a seal covers, by relative name."""
    found = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name != SEAL and name not in UNSEALED}


def model_hash(directory: Path) -> str:
    """Hash of the files an engine loads: everything outside our own folder."""
    return of_value({n: of_file(p) for n, p in files(directory).items() if not n.startswith(f"{FOLDER}/")})


def weights_hash(directory: Path) -> str:
    """Hash of the weights alone: what the order of certification depends on, whatever files lie beside them."""
    return of_value({n: of_file(p) for n, p in files(directory).items() if n.endswith(WEIGHTS)})


def write_record(directory: Path, name: str, value: Any) -> None:
    """Write a value as canonical JSON into our folder."""
    write_text(directory, name, canonical(value).decode())


def write_text(directory: Path, name: str, text: str) -> None:
    """Write a file into our folder.

    Raises:
        DiskFull: there is no room for it.
    """
    path = directory / FOLDER / name
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def read_record(directory: Path, name: str) -> Any:
    """Read a value back.

    Raises:
        VerificationFailed: the file is missing, or is not the canonical JSON we write.
    """
    path = directory / FOLDER / name
    if not path.is_file():
        raise VerificationFailed(
            "is missing",
            expected="an artifact that `pennyweight compress` wrote, with all its files",
            mend="restore it from a copy, or compress again",
            site=str(path),
        )
    data = path.read_bytes()
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VerificationFailed(f"is not JSON: {error}", mend="restore it from a copy", site=str(path)) from error
    if canonical(value) != data:
        raise VerificationFailed("was edited: it is not written the way we write it", site=str(path))
    return value


def seal(directory: Path) -> None:
    """Write the hash of every file."""
    write_record(directory, "seal.json", {"sha256": {name: of_file(path) for name, path in files(directory).items()}})


def check_seal(directory: Path) -> int:
    """Check every file against the seal; returns how many there are.

    Raises:
        VerificationFailed: names the first files that are missing, changed or not sealed.
    """
    sealed = read_record(directory, "seal.json")
    found = sealed.get("sha256") if isinstance(sealed, dict) else None
    hashes: Mapping[str, str] = found if isinstance(found, dict) else {}
    present = files(directory)
    missing = sorted(set(hashes) - set(present))
    foreign = sorted(set(present) - set(hashes))
    changed = [name for name in sorted(set(hashes) & set(present)) if of_file(present[name]) != hashes[name]]
    for words, names in (("missing", missing), ("not sealed", foreign), ("changed since it was sealed", changed)):
        if names:
            raise VerificationFailed(
                f"{words}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
                expected="the files as they were sealed, and no others",
                mend="restore them from a copy, or compress again",
                site=str(directory),
            )
    return len(hashes)


def size_on_disk(directory: Path) -> int:
    """Bytes of the files an engine loads."""
    return sum(p.stat().st_size for n, p in files(directory).items() if not n.startswith(f"{FOLDER}/"))


def code_hash() -> str:
    """Hash of this package's own sources."""
    root = Path(__file__).resolve().parents[1]
    return of_value({str(p.relative_to(root)): of_bytes(p.read_bytes()) for p in sorted(root.rglob("*.py"))})
