"""What llama.cpp calls the tensors and numbers of each family it and we know, and what it takes for granted of them.

Source: llama.cpp, `conversion/` (what its converter writes) and `src/models/` (what its code computes), read at the
version that llama-cpp-python 0.3.36 carries. A configuration that asks for what that code does not compute is refused:
the file would load and give other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.export.gguf.stream import f32, u32
from pennyweight.network.sources.source import Source

OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"
DROPPED = "rotary_emb.inv_freq"  # old checkpoints store it; it follows from the configuration
NUMBERS: Mapping[str, tuple[str, Callable[[Any], bytes]]] = {
    "context_length": ("max_position_embeddings", u32), "embedding_length": ("hidden_size", u32),
    "block_count": ("num_hidden_layers", u32), "feed_forward_length": ("intermediate_size", u32),
    "attention.head_count": ("num_attention_heads", u32), "attention.head_count_kv": ("num_key_value_heads", u32),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", f32), "vocab_size": ("vocab_size", u32),
}  # fmt: skip
WINDOW = {"attention.sliding_window": ("sliding_window", u32)}
SOFT_CAPS = {
    "attn_logit_softcapping": ("attn_logit_softcapping", f32),
    "final_logit_softcapping": ("final_logit_softcapping", f32),
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family.

    Args:
        name: as llama.cpp calls it.
        block: stems of a block's tensors, in transformers and in the file.
        biases: stems that have a bias; others must not.
        rotary_pairs: stems whose rows are stored in the order in which llama.cpp rotates them: a head's two halves
            interleaved. Other families are rotated as transformers does.
        plus_one: whether norms multiply with one more than is stored; the file holds the sum.
        numbers: further keys, the option they are, and how they are written.
        required: options that its code takes for granted.
        period: of blocks in one of which attention sees everything, and a window in all others; 0 where all see all.
        always_tied: whether the head is the embedding table.
        scaled_by: number of blocks from which its code divides queries by another root than that of the head's size.
    """

    name: str
    block: Mapping[str, str] = field(default_factory=lambda: BLOCK)
    biases: frozenset[str] = frozenset()
    rotary_pairs: frozenset[str] = frozenset()
    plus_one: bool = False
    numbers: Mapping[str, tuple[str, Callable[[Any], bytes]]] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    period: int = 0
    always_tied: bool = False
    scaled_by: int = 0

    def name_of(self, parameter: str) -> str | None:
        """What a tensor is called in the file; None for one it does not know."""
        stem, _, suffix = parameter.rpartition(".")
        if suffix not in ("weight", "bias"):
            return None
        if stem in OUTER:
            return f"{OUTER[stem]}.weight" if suffix == "weight" else None
        parts = stem.split(".", 3)
        if len(parts) < 4 or parts[:2] != ["model", "layers"] or not parts[2].isdecimal():
            return None
        inner = parts[3]
        if inner not in self.block or (suffix == "bias" and inner not in self.biases):
            return None
        return f"blk.{int(parts[2])}.{self.block[inner]}.{suffix}"

    def heads_of(self, parameter: str, config: Any) -> int | None:
        """Heads of a tensor whose rows go into another order; None for all others."""
        stem = parameter.rpartition(".")[0].split(".", 3)[-1]
        if stem not in self.rotary_pairs:
            return None
        return int(config.num_attention_heads if stem == "self_attn.q_proj" else config.num_key_value_heads)

    def adds_one(self, parameter: str) -> bool:
        """Whether the file holds one more than this tensor."""
        return self.plus_one and parameter.endswith("norm.weight")


PLAIN = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
GEMMA = {"attention_bias": False, "use_bidirectional_attention": False}
QKV = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})
ROTARY = frozenset({"self_attn.q_proj", "self_attn.k_proj"})
ARCHITECTURES = {
    "llama": Architecture(name="llama", rotary_pairs=ROTARY, required=PLAIN),
    "mistral": Architecture(name="llama", rotary_pairs=ROTARY, required={**PLAIN, "sliding_window": None}),
    "qwen2": Architecture(name="qwen2", biases=QKV, required=PLAIN),
    "qwen3": Architecture(name="qwen3", block={**BLOCK, **HEAD_NORMS}, required=PLAIN),
    "gemma": Architecture(
        name="gemma", plus_one=True, required={**GEMMA, "hidden_act": "gelu_pytorch_tanh"}, always_tied=True
    ),
    "gemma2": Architecture(
        name="gemma2", block={**BLOCK, **FOUR_NORMS}, plus_one=True, numbers={**WINDOW, **SOFT_CAPS},
        required={**GEMMA, "hidden_activation": "gelu_pytorch_tanh"}, period=2, always_tied=True, scaled_by=46,
    ),
    "gemma3_text": Architecture(
        name="gemma3", block={**BLOCK, **FOUR_NORMS, **HEAD_NORMS}, plus_one=True, numbers=WINDOW,
        required={
            **GEMMA, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        period=6, scaled_by=62,
    ),
}  # fmt: skip


def architecture_of(source: Source) -> tuple[Architecture, Any]:
    """The family of a model, and its options with all that its configuration leaves to transformers.

    Raises:
        InvalidModel: a family we cannot write, or options that llama.cpp does not compute.
    """
    from transformers import AutoConfig

    kind = str(source.config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise _refusal(
            f"models of type {kind} cannot be written to GGUF", f"one of {', '.join(ARCHITECTURES)}", source,
            mend="choose another engine: --for transformers",
        )  # fmt: skip
    known = {key: value for key, value in source.config.items() if key not in ("quantization_config", "torch_dtype")}
    config, architecture = AutoConfig.for_model(**known), ARCHITECTURES[kind]
    for option, value in architecture.required.items():
        found = getattr(config, option, value)
        if (found or None) != (value or None):
            raise _refusal(f"{option} is {found!r}", f"{value!r}, as llama.cpp computes it", source)
    for option, _ in architecture.numbers.values():
        if getattr(config, option, None) is None:
            raise _refusal(f"{option} is not set", "a number: llama.cpp uses one of its own otherwise", source)
    types = list(getattr(config, "layer_types", None) or [])
    period = architecture.period
    usual = ["sliding_attention" if period and (i + 1) % period else "full_attention" for i in range(len(types))]
    if types != usual:
        raise _refusal(
            "its blocks attend over a window in another order than llama.cpp's",
            f"full attention in every {period}th block" if period else "full attention in every block", source,
        )  # fmt: skip
    scale = getattr(config, "query_pre_attn_scalar", None)
    at_last = config.num_hidden_layers == architecture.scaled_by
    size = config.hidden_size // config.num_attention_heads if at_last else head_size(config)
    if scale is not None and scale != size:
        raise _refusal(f"query_pre_attn_scalar is {scale}", f"{size}, as llama.cpp computes it", source)
    rotation_of(config, source)
    return architecture, config


def head_size(config: Any) -> int:
    """Inputs of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def hyperparameters(architecture: Architecture, config: Any, source: Source) -> dict[str, bytes]:
    """Key-values that say what the network computes."""
    name, size = architecture.name, head_size(config)
    values = {
        f"{name}.{key}": write(getattr(config, option))
        for key, (option, write) in {**NUMBERS, **architecture.numbers}.items()
    }
    rotation, local = rotation_of(config, source)
    values[f"{name}.rope.freq_base"] = f32(float(rotation["rope_theta"]))
    if local is not None:
        values[f"{name}.rope.freq_base_swa"] = f32(float(local["rope_theta"]))
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        values[f"{name}.{key}"] = u32(size)
    if rotation.get("rope_type", "default") == "llama3":
        # llama.cpp multiplies with the factors of rope_freqs.weight; a reader needs what they were made of.
        for key in ("factor", "low_freq_factor", "high_freq_factor"):
            values[f"pennyweight.rope_scaling.{key}"] = f32(float(rotation[key]))
        values["pennyweight.rope_scaling.original_max_position_embeddings"] = u32(
            int(rotation["original_max_position_embeddings"])
        )
    return values


def rotation_of(config: Any, source: Source) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Options of the rotary embedding, and those of blocks with a window where they are others.

    Raises:
        InvalidModel: scaled in a way that we cannot write.
    """
    found: Mapping[str, Any] = config.rope_parameters
    local = found.get("sliding_attention")
    main = found.get("full_attention", found)
    for one, allowed in ((main, ("default", "llama3")), (local, ("default",))):
        kind = (one or {}).get("rope_type", "default")
        if kind not in allowed:
            raise _refusal(f"its rotary embedding is scaled ({kind})", "no scaling, or llama3's", source)
    if float(main.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _refusal("only a part of a head is rotated", "whole heads", source)
    return main, local


def rotary_factors(config: Any, source: Source) -> Tensor | None:
    """What llama.cpp divides the rotary frequencies by, `[size / 2]` float32; None where they are not scaled.

    Long waves are slowed down by the whole factor, short ones not at all, and those between by a part of it.
    """
    rotation, _ = rotation_of(config, source)
    if rotation.get("rope_type", "default") != "llama3":
        return None
    size, length = head_size(config), rotation["original_max_position_embeddings"]
    low, high, factor = rotation["low_freq_factor"], rotation["high_freq_factor"], rotation["factor"]
    frequency = 1.0 / (rotation["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    wave = 2 * math.pi / frequency
    smooth = (length / wave - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return torch.where(wave < length / high, 1.0, torch.where(wave > length / low, float(factor), between)).float()


def _refusal(happened: str, expected: str, source: Source, mend: str = "choose another engine") -> InvalidModel:
    return InvalidModel(happened, expected=expected, mend=mend, site=str(source.path))
