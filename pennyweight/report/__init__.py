"""The report: an artifact, a certificate or a comparison as one page: for a manager at the top, an engineer below."""

from __future__ import annotations

from pathlib import Path

from pennyweight.errors import InvalidOutput
from pennyweight.flow.profiling.values import Profile
from pennyweight.flow.search.frontier import Frontier
from pennyweight.report.page import frontier_page, page, profile_page
from pennyweight.report.record import read

NAME = "report.html"

__all__ = ["NAME", "render", "write", "write_frontier", "write_profile"]


def render(directory: Path) -> str:
    """Make the page of an artifact: one self-contained HTML file, the same for the same artifact.

    Args:
        directory: what `pennyweight compress` or `pennyweight certify` wrote.

    Raises:
        VerificationFailed: it holds no certificate, or one of its files was edited.
    """
    return str(page(read(Path(directory))))


def write(directory: Path, out: Path | None = None) -> Path:
    """Write the page and return where it is.

    Args:
        directory: what `pennyweight compress` or `pennyweight certify` wrote.
        out: file to write; `report.html` in the directory by default, the one name its seal leaves free.

    Raises:
        VerificationFailed: it holds no certificate, or one of its files was edited.
        InvalidOutput: `out` would be a foreign file among sealed ones, or cannot be written.
    """
    directory = Path(directory)
    home = directory / NAME
    out = home if out is None else Path(out)
    if out.resolve() != home.resolve() and out.resolve().is_relative_to(directory.resolve()):
        raise InvalidOutput(
            "the artifact is sealed, and another file in it would break the seal",
            expected=f"{home}, or a file elsewhere",
            mend="leave the path out",
            site=str(out),
        )
    _put(render(directory), out)
    return out


def write_profile(profile: Profile, path: str | Path) -> Path:
    """Write what `pennyweight measure` found as a page of its own, and return where it is.

    Args:
        profile: everything two models differ in.
        path: file to write.

    Raises:
        InvalidOutput: it cannot be written.
    """
    out = Path(path)
    _put(profile_page(profile), out)
    return out


def write_frontier(found: Frontier, path: str | Path) -> Path:
    """Write the curve of sizes and losses as a page, and return where it is.

    Args:
        found: what `pennyweight frontier` measured.
        path: file to write.

    Raises:
        InvalidOutput: it cannot be written.
    """
    out = Path(path)
    _put(frontier_page(found), out)
    return out


def _put(text: str, out: Path) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidOutput(
            f"the report cannot be written: {error.strerror}", expected="a file in a directory that can be written",
            mend="choose another path", site=str(out),
        ) from error  # fmt: skip
