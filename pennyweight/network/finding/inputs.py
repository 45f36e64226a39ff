"""Something for a network to eat: keyword arguments for one small forward pass, guessed from its signature.

What a network is called says nothing here; the names of its forward's arguments and the numbers in its config do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.errors import InvalidModel
from pennyweight.numerics.random import stream

BATCH = 2  # one would let mistakes about the batch dimension through
SIDE = 32  # of an image for a network that takes any
PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder")  # configs inside a config


def example(model: nn.Module, *, length: int = 16, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments for one small forward pass of a network; the same every time.

    Args:
        model: of transformers, of diffusers, or a plain module whose forward takes one tensor.
        length: tokens of a text.
        seed: of the numbers.

    Raises:
        InvalidModel: it cannot be guessed what the network takes.
    """
    taken = inspect.signature(model.forward).parameters
    config = getattr(model, "config", None)
    if config is None:
        return _plain(model, taken, length, seed)
    guess = _Guess(config, length, seed)
    found = guess.diffusion(taken) if "timestep" in taken else guess.transformer(model, taken)
    missing = [
        name for name, p in taken.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in found
    ]  # fmt: skip
    if not found or missing:
        raise _unknown(model, f"no example of {', '.join(missing) or 'its inputs'} follows from its config")
    if "use_cache" in taken or (hasattr(config, "use_cache") and _takes_anything(taken)):
        found["use_cache"] = False
    return found


def _unknown(model: nn.Module, why: str) -> InvalidModel:
    return InvalidModel(
        f"it cannot be guessed what {type(model).__name__} takes: {why}",
        expected="a model of transformers or diffusers, or a module whose forward takes one tensor",
        mend="pass inputs: a dictionary of the keyword arguments of one forward pass",
    )


def _takes_anything(taken: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind == p.VAR_KEYWORD for p in taken.values())


def _setting(config: Any, *names: str) -> Any:
    """The first of some settings that a config, or a config inside it, holds."""
    parts = [config, *(p for p in (_own(config, name) for name in PARTS) if p is not None)]
    for part in parts:
        for name in names:
            value = _own(part, name)
            if value is not None:
                return value
    return None


def _own(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


class _Guess:
    def __init__(self, config: Any, length: int, seed: int) -> None:
        self.config, self.length, self.seed = config, length, seed

    def transformer(self, model: nn.Module, taken: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        """For a model of transformers."""
        main = getattr(model, "main_input_name", "input_ids")
        made: dict[str, Callable[[], Any]] = {
            "input_ids": self._ids,
            "pixel_values": self._image,
            "input_features": self._mel,
            "input_values": lambda: self._floats("input_values", 400 * self.length),
        }
        # A picture inside a text needs marks in the text; without a picture the text stands alone.
        mixed = any(_setting(self.config, n) is not None for n in ("image_token_id", "image_token_index"))
        wanted = [name for name in made if name in taken and (name == main or not mixed)]
        found = {name: value for name in wanted if (value := made[name]()) is not None}
        if _own(self.config, "is_encoder_decoder") and "decoder_input_ids" in taken:
            found["decoder_input_ids"] = self._ids("decoder_input_ids")
        return {name: value for name, value in found.items() if value is not None}

    def diffusion(self, taken: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        """For a model of diffusers: a noisy picture, the time, and what it is about."""
        config = self.config
        channels, side = _own(config, "in_channels") or 3, _own(config, "sample_size") or SIDE
        high, wide = side if isinstance(side, tuple | list) else (side, side)
        made: dict[str, Any] = {"timestep": torch.tensor([7, 400][:BATCH])}
        packed = "img_ids" in taken  # patches in a row
        shape = (self.length, channels) if packed else (channels, high, wide)
        for name in ("sample", "hidden_states"):
            if name in taken:
                made[name] = self._floats(name, *shape)
                break
        text = _own(config, "joint_attention_dim") or _own(config, "caption_channels")
        text = text or _own(config, "cross_attention_dim")
        text = text[0] if isinstance(text, tuple | list) else text
        if "encoder_hidden_states" in taken and text:
            made["encoder_hidden_states"] = self._floats("text", self.length, text)
        classes = _own(config, "num_embeds_ada_norm") or _own(config, "num_class_embeds")
        if "class_labels" in taken and classes:
            made["class_labels"] = self._integers("class_labels", classes)
        pooled = _own(config, "pooled_projection_dim")
        if "pooled_projections" in taken and pooled:
            made["pooled_projections"] = self._floats("pooled", pooled)
        if packed:
            made |= {"img_ids": torch.zeros(self.length, 3), "txt_ids": torch.zeros(self.length, 3)}
        if "guidance" in taken and _own(config, "guidance_embeds"):
            made["guidance"] = torch.ones(BATCH)
        if "added_cond_kwargs" in taken and _own(config, "addition_embed_type") == "text_time":
            times = 6
            width = _own(config, "projection_class_embeddings_input_dim") - times * _own(
                config, "addition_time_embed_dim"
            )
            made["added_cond_kwargs"] = {
                "text_embeds": self._floats("pooled", width),
                "time_ids": torch.ones(BATCH, times),
            }
        return made

    def _ids(self, name: str = "input_ids") -> Tensor | None:
        vocabulary = _setting(self.config, "vocab_size")
        return None if not vocabulary else self._integers(name, vocabulary, self.length)

    def _image(self) -> Tensor | None:
        side = _setting(self.config, "image_size")
        channels = _setting(self.config, "num_channels")
        if not channels:
            return None
        high, wide = side if isinstance(side, tuple | list) else (side or SIDE, side or SIDE)
        return self._floats("pixel_values", channels, high, wide)

    def _mel(self) -> Tensor | None:
        bins, positions = _setting(self.config, "num_mel_bins"), _setting(self.config, "max_source_positions")
        return self._floats("input_features", bins, 2 * positions) if bins and positions else None

    def _floats(self, name: str, *shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=stream(self.seed, "example", name))

    def _integers(self, name: str, below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, (BATCH, *shape), generator=stream(self.seed, "example", name))


def _plain(model: nn.Module, taken: Mapping[str, inspect.Parameter], length: int, seed: int) -> dict[str, Any]:
    """For a module of nobody's: one tensor that its first layer can read."""
    needed = [n for n, p in taken.items() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    if len(needed) != 1:
        raise _unknown(model, f"its forward needs {', '.join(needed) or 'nothing that has a name'}")
    guess = _Guess({}, length, seed)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return {needed[0]: guess._integers(needed[0], module.num_embeddings, length)}
        if isinstance(module, nn.MultiheadAttention):
            return {needed[0]: guess._floats(needed[0], length, module.embed_dim)}
        if isinstance(module, nn.Linear):
            return {needed[0]: guess._floats(needed[0], length, module.in_features)}
        if isinstance(module, nn.modules.conv._ConvNd):
            side = SIDE if len(module.kernel_size) > 1 else 4 * length
            return {needed[0]: guess._floats(needed[0], module.in_channels, *[side] * len(module.kernel_size))}
    raise _unknown(model, "it has no layer of a kind that tells")
