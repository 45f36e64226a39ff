"""A page for every room of methods and one for the formats, made from their docstrings.

python tests/method_pages.py        writes docs/methods/; test_method_pages.py holds the pages to the code
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from pennyweight import catalogue
from pennyweight.formats import FORMATS
from pennyweight.formats.passing import PASSING

PAGES = Path(__file__).resolve().parents[1] / "docs" / "methods"
ROOMS = (
    "quantization",
    "activations",
    "calibration",
    "recovery",
    "rewrites",
    "pricing",
    "allocation",
    "search",
    "measurement",
    "certification",
    "multiplicity",
    "probability",
)
HEAD = "Made from the docstrings of `{where}` by `python tests/method_pages.py`; the tests hold it to them.\n"


def pages() -> dict[str, str]:
    """Every page by its file name."""
    found = {f"{room}.md": _page(room, catalogue.classes(room)) for room in ROOMS}
    found["formats.md"] = _formats()
    return found


def _page(room: str, kinds: tuple[type[Any], ...]) -> str:
    head = f"# {room.capitalize()}\n\n{HEAD.format(where=f'pennyweight/methods/{room}/')}"
    return "\n".join([head, *(_method(kind) for kind in sorted(kinds, key=lambda kind: kind.name))])


def _method(kind: type[Any]) -> str:
    facts = [("source", kind.paper), ("needs", ", ".join(sorted(kind.needs)) or "nothing")]
    if hasattr(kind, "takes"):
        facts.append(("writes", ", ".join(sorted(_writes(format) for format in kind.takes))))
    promises = [str(promise).replace("()", "") for promise in getattr(kind, "promises", ())]
    facts += [("promises", ", ".join(promises))] if promises else []
    lines = [f"## `{kind.name}`", "", _text(inspect.getmodule(kind)), ""]
    lines += [f"- *{name}*: {value}" for name, value in facts]
    lines += ["", *_parameters(kind)]
    return "\n".join(lines).rstrip() + "\n"


def _writes(format: type[Any]) -> str:
    return {"Format": "every format", "Scalar": "formats with a code for every weight"}.get(
        format.__name__, getattr(format, "name", format.__name__)
    )


def _formats() -> str:
    lines = ["# Formats", "", HEAD.format(where="pennyweight/formats/")]
    lines += ["Relative squared errors on normal weights are those of `benchmarks/results/grid_error.json`.\n"]
    for kind in sorted(FORMATS, key=lambda kind: kind.name):
        examples = "; ".join(f"`{example.label()}` {_bits(example):.2f}" for example in kind.examples())
        lines += [f"## `{kind.name}`", "", _text(inspect.getmodule(kind)), "", *_parameters(kind)]
        lines = [*lines[:-1], *filter(None, lines[-1:])]
        lines += ["", f"Bits a weight of a 768 x 768 matrix, everything stored counted: {examples}.", ""]
    lines += ["# Formats of activations", "", HEAD.format(where="pennyweight/formats/passing/")]
    for passing in sorted(PASSING, key=lambda kind: kind.name):
        examples = "; ".join(f"`{example.label()}`" for example in passing.examples())
        lines += [f"## `{passing.name}`", "", _text(inspect.getmodule(passing)), "", *_parameters(passing)]
        lines = [*lines[:-1], *filter(None, lines[-1:])]
        lines += ["", f"Such as {examples}.", ""]
    return "\n".join(lines)


def _bits(format: Any) -> float:
    return float(format.stored_bits((768, 768)) / 768**2)


def _text(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "").strip()


def _parameters(kind: type[Any]) -> list[str]:
    """The class's own docstring, its section of arguments as a list."""
    text, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")
    arguments = rest.partition("\nRaises:")[0]
    lines = [text.partition("\nRaises:")[0].strip(), ""]
    for line in arguments.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            name, _, what = line.strip().partition(":")
            lines.append(f"- `{name}`:{what}")
        elif line.strip():
            lines[-1] += f" {line.strip()}"
    return lines


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for name, page in pages().items():
        (PAGES / name).write_text(page, encoding="utf-8")
    sys.stdout.write(f"{len(pages())} pages in {PAGES}\n")
