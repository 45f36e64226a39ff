"""Fingerprints: SHA-256 of files and values, and the one way we write JSON that is hashed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

CHUNK = 1 << 22


def of_bytes(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and one way to write each number; equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def of_value(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return of_bytes(canonical(value))
