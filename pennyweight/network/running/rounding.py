"""A network whose files say that it rounds what flows through it: hooks that do so whenever its modules run.

What a layer reads is rounded before the layer is called. Keys and values are rounded where they meet the queries, after
positions were turned into them, which is how an engine keeps them; so a token sees its own key rounded as well.
`activations.py` does the same for any product of any model, in a context; these hooks are for files that engines load,
where sites are linear layers. Gradients pass through a rounding as if it were not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from pennyweight.errors import InvalidModel

Change = Callable[[Tensor], Tensor]


@runtime_checkable
class Rounds(Protocol):
    """A rounding that is ready to be used, such as `formats.passing.Quantizer`."""

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest numbers there are."""
        ...


@runtime_checkable
class Roundings(Protocol):
    """Roundings by name, as `formats.passing.Activations` has them."""

    @property
    def inputs(self) -> Mapping[str, Rounds]:
        """Of what linear layers read."""
        ...

    @property
    def caches(self) -> Mapping[str, tuple[Rounds, Rounds]]:
        """Of keys and values, by the module of attention."""
        ...


def roundings_of(source: Any) -> Roundings | None:
    """What the files of a network say it rounds; None where their kind cannot say such a thing."""
    found: Roundings | None = getattr(source, "activations", None)
    return found


def install(model: nn.Module, roundings: Roundings | None) -> None:
    """Let modules round whatever is passed to them from now on.

    Args:
        model: its tree.
        roundings: None or empty for a network that rounds nothing.

    Raises:
        InvalidModel: it has no such module.
    """
    if roundings is None:
        return
    for name, rounds in roundings.inputs.items():
        _named(model, name).register_forward_pre_hook(_before(rounds))
    for name, (keys, values) in roundings.caches.items():
        seen_by(_named(model, name), straight(keys), straight(values))


def attentions(model: nn.Module) -> list[str]:
    """Modules of attention that keep keys and values, as engines that read such files recognise them."""
    return [
        name for name, module in model.named_modules()
        if "attention" in type(module).__name__.lower() and (hasattr(module, "k_proj") or hasattr(module, "qkv_proj"))
    ]  # fmt: skip


def seen_by(attention: nn.Module, keys: Change, values: Change) -> None:
    """Let one module of attention pass its keys and values through functions, where they meet the queries."""
    forward = attention.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        mode = _KeysAndValues(keys, values)
        with mode:
            found = forward(*args, **kwargs)
        if not mode.met:
            raise InvalidModel(
                "its keys and values were not seen", expected="attention by scaled_dot_product_attention",
                mend="leave the cache as it is", site=type(attention).__name__,
            )  # fmt: skip
        return found

    attention.forward = changed


def straight(rounds: Rounds) -> Change:
    """The rounding, through which gradients pass as they are."""

    def change(x: Tensor) -> Tensor:
        if not x.requires_grad:
            return rounds.rounded(x)
        return x + (rounds.rounded(x.detach()) - x.detach())

    return change


def _before(rounds: Rounds) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    change = straight(rounds)
    return lambda _module, args: (change(args[0]), *args[1:])


def _named(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InvalidModel(
            "the files round what this module reads, and the model has none of this name", expected="a layer's name",
            mend="the files belong to another architecture", site=name,
        ) from error  # fmt: skip


class _KeysAndValues(TorchFunctionMode):
    def __init__(self, keys: Change, values: Change) -> None:
        super().__init__()
        self.keys, self.values, self.met = keys, values, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.met = True
            query, key, value, *rest = args
            args = (query, self.keys(key), self.values(value), *rest)
        return func(*args, **(kwargs or {}))
