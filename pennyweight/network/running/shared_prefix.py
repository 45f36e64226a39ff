"""Several continuations of one prompt, with the prompt read once: the same numbers and gradients as separate rows.

Prefix Grouper (arXiv 2506.05433) splits attention in two: the prompt reads itself, and every continuation reads the
prompt and itself. The model's own cache does that without a line about any family: the prompt is read with a cache, and
the cache is lent to a batch of continuations. Nothing is detached and nothing is overwritten, so that gradients of all
continuations add up in the prompt. Positions, windows and slopes follow from the cache, as when text is written.

What a model keeps instead of keys and values (a recurrent state) is not lent, and such a model is refused. So is one
whose logits or gradients are not those of separate rows on a few tokens. A loss on the prompt's own tokens, or one
that balances experts, sees the prompt once and not once a continuation: weigh it yourself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pennyweight.errors import InvalidModel, InvalidText
from pennyweight.numerics.random import stream

LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")  # where configurations say what a model can read
PROMPT, ANSWERS = 19, (6, 2)  # tokens of the check
# Relative rounding error of logits and gradients, over epsilon and the root of the number of layers: at most this in
# float32, and in 16 bits, whose products are summed in float32.
ROUNDING, ROUNDING_16 = 16.0, 2.5
COARSER = {"high": 2.0**-10, "medium": 2.0**-7}  # epsilon of float32 products where PyTorch is told to hurry
CHANCE = ("drop", "jitter")  # attributes of modules that hold a rate of random changes while training

_passed: WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = WeakKeyDictionary()


def shared_prefix(
    model: nn.Module, prefix: Int[Tensor, " P"], suffixes: Sequence[Int[Tensor, " _"]]
) -> list[Float[Tensor, "_ vocabulary"]]:
    """Logits of several continuations of one prompt.

    Args:
        model: a causal language model of transformers, with its weights; checked once by `check_shared_prefix`.
        prefix: token ids of the prompt, on the model's device.
        suffixes: token ids of each continuation, of any lengths, one token or more.

    Returns:
        For each suffix the logits that predict its tokens, in the model's dtype: row t is for token t, and row 0 comes
        from the last token of the prompt. Differentiable where gradients are recorded.

    Raises:
        InvalidModel: as `check_shared_prefix`.
        InvalidText: no token, tokens that the model does not have, or more of them than it can read.
    """
    check_shared_prefix(model)
    _check_tokens(model, prefix, suffixes)
    return _logits(model, prefix, suffixes)


def check_shared_prefix(model: nn.Module) -> None:
    """Refuse a model whose numbers after a shared prompt would not be those of separate rows.

    Rules come first: they know of what a few tokens cannot show. Then two short continuations are compared with rows
    of their own, in the model's dtype: logits, and where gradients are recorded also those of the prompt's embeddings.
    A model that passed is not compared again until its mode, dtype, device or attention changes. Rounding to 16 bits
    hides what is wrong in one layer of many by a little: where that is a worry, check the model in float32.

    Raises:
        InvalidModel: it keeps no keys and values, changes at random while training, or gives other numbers.
    """
    _check_rules(model)
    weight = next(model.parameters())
    attention = getattr(_config(model), "_attn_implementation", None)
    state = (model.training, weight.dtype, weight.device, attention, torch.is_grad_enabled())
    if state in _passed.setdefault(model, set()):
        return
    errors, bound = _errors(model), _rounding(model)
    for what, size in errors.items():
        if not size <= bound:  # NaN too
            raise _refusal(
                model, f"its {what} differ from those of separate rows by {size:.1e} of their size",
                expected=f"at most {bound:.1e}, what rounding explains",
            )  # fmt: skip
    _passed[model].add(state)


def _logits(model: nn.Module, prefix: Tensor, suffixes: Sequence[Tensor]) -> list[Tensor]:
    cache = _empty_cache(model)
    kept = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    first = model(input_ids=prefix[None], past_key_values=cache, use_cache=True, **kept).logits[0, -1:]
    # The last token of a suffix is predicted and not read. What stands behind a shorter one is read by nobody.
    read = [suffix[:-1] for suffix in suffixes if len(suffix) > 1]
    if not read:
        return [first for _ in suffixes]
    _lend(model, cache, len(prefix))
    rows = nn.utils.rnn.pad_sequence(read, batch_first=True)
    later = iter(model(input_ids=rows, past_key_values=cache, use_cache=True).logits)
    return [torch.cat([first, next(later)[: len(suffix) - 1]]) if len(suffix) > 1 else first for suffix in suffixes]


def _empty_cache(model: nn.Module) -> Any:
    """The model's own kind of cache, if keys and values are all that it keeps."""
    from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    cache = DynamicCache(config=_config(model))
    for layer in cache.layers:  # a dummy holds nothing: its layer reads what another one keeps
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer):
            raise _refusal(model, f"it keeps more than keys and values: {type(layer).__name__}")
    return cache


def _lend(model: nn.Module, cache: Any, length: int) -> None:
    """Make the layers of a filled cache answer any number of rows, and keep nothing of what those bring."""
    from transformers.cache_utils import DummyLayer

    for layer in cache.layers:
        if isinstance(layer, DummyLayer):
            continue
        if layer.get_seq_length() != length:
            raise _refusal(model, f"a layer keeps {layer.get_seq_length()} of {length} tokens in the cache it is given")
        layer.update = _lender(layer.keys, layer.values)


def _lender(keys: Tensor, values: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    def update(new_keys: Tensor, new_values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        old = (kept.expand(len(new_keys), -1, -1, -1) for kept in (keys, values))  # backwards, this is their sum
        joined = [torch.cat(pair, dim=-2) for pair in zip(old, (new_keys, new_values), strict=True)]
        return joined[0], joined[1]

    return update


def _check_rules(model: nn.Module) -> None:
    if model.training and getattr(model, "is_activation_checkpointing", False):
        raise _refusal(
            model, "it recomputes its layers in the backward pass, and keeps no cache then",
            mend="call model.activation_checkpointing_disable()",
        )  # fmt: skip
    for name, module in model.named_modules():
        if not module.training:
            continue
        found = {key: value for key, value in vars(module).items() if any(word in key.lower() for word in CHANCE)}
        if isinstance(module, nn.modules.dropout._DropoutNd):
            found["p"] = module.p
        rates = {key: value for key, value in found.items() if isinstance(value, float) and value > 0}
        if rates or isinstance(module, nn.modules.batchnorm._NormBase):
            what = ", ".join(f"{key} = {value}" for key, value in rates.items()) or type(module).__name__
            raise _refusal(
                model, f"while training, {name or 'the model'} changes with what else is in the batch or at random: "
                + what, mend="set these rates to 0, or call model.eval(), which does not stop gradients",
            )  # fmt: skip
    for key, value in _config(model).to_dict().items():
        if "capacity" in key and isinstance(value, int | float) and value > 0:
            raise _refusal(model, f"its experts take a limited number of tokens: {key} = {value}")


def _check_tokens(model: nn.Module, prefix: Tensor, suffixes: Sequence[Tensor]) -> None:
    config, rows = _config(model), model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    texts = [prefix, *suffixes]
    if len(texts) == 1 or not all(map(len, texts)):
        raise InvalidText(
            "a prompt or a continuation of no token, or no continuation", expected="one token or more in each",
            mend="leave out what is empty; begin an empty prompt with a separator", site=type(model).__name__,
        )  # fmt: skip
    every = torch.cat(texts)
    if int(every.min()) < 0 or int(every.max()) >= rows:
        raise InvalidText(
            f"token ids from {int(every.min())} to {int(every.max())}", expected=f"each in [0, {rows - 1}]",
            mend="cut the text with this model's tokenizer; ids are not padded", site=type(model).__name__,
        )  # fmt: skip
    total = len(prefix) + max(map(len, suffixes))
    # Some positions turn at another speed once the whole row is longer than a bound: then the prompt must be, too.
    bounds = [bound for bound in _bounds(getattr(config, "rope_parameters", None)) if len(prefix) <= bound]
    known = (getattr(config, key, None) for key in LENGTH_KEYS)
    limit = min([*bounds, *[value for value in known if isinstance(value, int)][:1], total])
    if total > limit:
        raise InvalidText(
            f"a prompt of {len(prefix)} tokens and a continuation of {total - len(prefix)}",
            expected=f"{limit} tokens at most" + (", or a prompt longer than that" if limit in bounds else ""),
            mend="shorten the prompt from its beginning, or run the continuations as separate rows",
            site=type(model).__name__,
        )  # fmt: skip


def _bounds(rope: Any) -> Iterator[int]:
    """Lengths of a row beyond which rotary positions change, from one or several sets of parameters."""
    if isinstance(rope, dict):
        bound = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") in ("longrope", "dynamic") and isinstance(bound, int):
            yield bound
        for inner in rope.values():
            yield from _bounds(inner)


def _errors(model: nn.Module) -> dict[str, float]:
    """Relative differences between a shared prompt and separate rows on random tokens."""
    generator = stream(0, "shared prefix")
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    size, device = embedding.weight.shape[0], embedding.weight.device
    draw = [torch.randint(size, (n,), generator=generator).to(device) for n in (PROMPT, *ANSWERS)]
    prefix, suffixes = draw[0], draw[1:]
    with _leaves(embedding) as separate:
        rows = [model(input_ids=torch.cat([prefix, s])[None], use_cache=False).logits[0] for s in suffixes]
    try:
        with _leaves(embedding) as shared:
            found = _wide(torch.cat(_logits(model, prefix, suffixes)))
    except InvalidModel:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _refusal(model, f"it cannot go on from a cache: {why}") from error
    expected = _wide(torch.cat([logits[PROMPT - 1 : -1] for logits in rows]))
    errors = {"logits": _distance(found, expected)}
    if torch.is_grad_enabled():
        along = torch.randn(found.shape, generator=generator).to(found)
        along[[0, ANSWERS[0]]] = 0  # these come from the prompt itself, and would hide what comes through the cache
        first = _wide(torch.autograd.grad((found * along).sum(), shared[0])[0][0])
        second = torch.autograd.grad((expected * along).sum(), separate)
        errors["gradients"] = _distance(first, torch.stack([_wide(part[0, :PROMPT]) for part in second]).sum(0))
    return errors


def _rounding(model: nn.Module) -> float:
    dtype = next(model.parameters()).dtype
    root = float(_config(model).num_hidden_layers) ** 0.5
    if dtype.itemsize <= 2:
        return float(ROUNDING_16 * torch.finfo(dtype).eps * root)
    # Models normalise in float32 even where their weights are wider.
    precision = COARSER.get(torch.get_float32_matmul_precision(), torch.finfo(torch.float32).eps)
    return float(ROUNDING * precision * root)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _distance(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


@contextmanager
def _leaves(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """What the embedding gives, call by call; gradients end there, so that parameters keep theirs."""
    found: list[Tensor] = []

    def record(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        del module, args
        found.append(output.detach().requires_grad_(torch.is_grad_enabled()))
        return found[-1]

    handle = embedding.register_forward_hook(record)
    try:
        yield found
    finally:
        handle.remove()


def _config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise _refusal(model, "it has no configuration of transformers")
    return config.get_text_config(decoder=True)


def _refusal(
    model: nn.Module,
    why: str,
    *,
    expected: str = "a causal decoder whose layers read the past from keys and values alone",
    mend: str = "run the continuations as separate rows, each with the prompt in front",
) -> InvalidModel:
    return InvalidModel(f"its prompt cannot be shared: {why}", expected=expected, mend=mend, site=type(model).__name__)
