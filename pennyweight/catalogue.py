"""Find methods by name: the one list of everything Pennyweight can do."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pennyweight import methods
from pennyweight.errors import UnknownName


@cache
def rooms() -> tuple[str, ...]:
    """Names of the rooms of methods, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(methods.__path__)))


def classes(room: str) -> tuple[type[Any], ...]:
    """The methods of a room."""
    found: tuple[type[Any], ...] = importlib.import_module(f"{methods.__name__}.{room}").METHODS
    return found


def every() -> Iterator[tuple[str, type[Any]]]:
    """Every room with each of its methods."""
    for room in rooms():
        for kind in classes(room):
            yield room, kind


def find(spec: str | Any, room: str | None = None) -> Any:
    """The method a name stands for, with arguments if there are any: `gptq`, `gptq(damping=0.02)`, `smoothquant+`.

    An object is returned as it is: a user's own method needs no registering.

    Raises:
        UnknownName: no method has that name, or it has no such argument.
    """
    if not isinstance(spec, str):
        return spec
    name, arguments = _parse(spec)
    known = {kind.name: kind for where, kind in every() if room is None or where == room}
    if name not in known:
        raise UnknownName(
            f"no method is called {name!r}",
            expected="one of " + ", ".join(sorted(known)),
            mend=nearest(name, list(known)),
            site=room or "",
        )
    kind = known[name]
    accepted = [*inspect.signature(kind).parameters]
    for argument in arguments:
        if argument not in accepted:
            raise UnknownName(
                f"{name} has no argument {argument!r}",
                expected="one of " + ", ".join(accepted) if accepted else "no arguments",
                mend=nearest(argument, accepted),
                site=spec,
            )
    return kind(**arguments)


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    name, bracket, rest = spec.strip().partition("(")
    name = name.replace("+", "_plus")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (
        SyntaxError,
        ValueError,
        AssertionError,
        RecursionError,
        MemoryError,
    ) as error:  # the last: nested too deeply
        raise UnknownName(
            f"cannot read {spec[:200]!r}",
            expected="a name and arguments, such as gptq(damping=0.02)",
            mend="mend the spelling",
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none: those it may have meant."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else "pennyweight list shows every method"
