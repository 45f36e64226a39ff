"""Tiny random networks of many families, from the real classes: nothing is downloaded.

`FAMILIES` is the one table; a test that should hold for every network is parametrized over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pennyweight.network.finding.inputs import example
from pennyweight.numerics.random import stream


@dataclass(frozen=True)
class Family:
    """One row: how to build a tiny network of a family, and what it eats."""

    name: str
    build: Callable[[], nn.Module]
    kind: str  # decoder, mixture, state, encoder, vision, diffusion, plain
    given: Callable[[nn.Module], dict[str, Any]] | None = None

    def model(self, seed: int = 0) -> nn.Module:
        """A network in evaluation mode with every number random."""
        return perturb(self.build().eval().requires_grad_(False), seed)

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        return self.given(model) if self.given else example(model, length=12)


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers of a sane scale in every parameter and every stored buffer of floats."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=stream(seed, "perturb", name), dtype=parameter.dtype)
            if parameter.dim() < 2:
                parameter.add_(0.3 * noise)
            else:
                fan = parameter[0].numel() if parameter.dim() != 3 else parameter.shape[-1]
                parameter.copy_(noise * max(fan, 4) ** -0.5)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name in module._non_persistent_buffers_set or not buffer.is_floating_point() or not buffer.dim():
                    continue
                noise = torch.rand(buffer.shape, generator=stream(seed, "perturb", name), dtype=buffer.dtype)
                if bool((buffer == buffer.flatten()[0]).all()):
                    buffer.add_(0.5 * noise)
    return model


# transformers


def _auto(kind: str, auto: str = "AutoModelForCausalLM", **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.for_model(kind, **settings)
        with _seeded():
            made: nn.Module = getattr(transformers, auto).from_config(config)
        return made

    return build


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


BASE: Mapping[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**BASE, "num_key_value_heads": 2}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 20, "first_k_dense_replace": 1,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 4, "num_channels": 3,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _clip() -> nn.Module:
    text = {**BASE, "num_hidden_layers": 2, "eos_token_id": 95}
    return _auto("clip", "AutoModel", text_config=text, vision_config=VISION, projection_dim=24)()


_MINILM = {**BASE, "hidden_size": 24, "intermediate_size": 96, "num_attention_heads": 12, "num_hidden_layers": 3}


# Plain torch


class Residual(nn.Module):
    def __init__(self, size: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(size, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(size, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Laid out as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(8, 8, 1), Residual(8, 8, 1))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16, 1))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.layer2(self.layer1(x)), 1), 1))


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.shared, self.after = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.before(x)))))))


class Perceptron(nn.Module):
    """Two layers with something in between."""

    def __init__(self, between: Callable[[Tensor], Tensor], hidden: int = 12) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(6, hidden), nn.Linear(hidden, 5), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


class Classifier(nn.Module):
    """An `nn.TransformerEncoder` between an embedding and a head."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 56, dropout=0.0, batch_first=True, norm_first=norm_first)
        last = nn.LayerNorm(32) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=False)
        self.head = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)))


def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8,
    )  # fmt: skip


def _unet_condition() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4, attention_head_dim=4, cross_attention_dim=12,
    )  # fmt: skip


GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **SPECIAL}
FAMILIES: tuple[Family, ...] = (
    Family("llama", _auto("llama", **GROUPED), "decoder"),
    Family("llama-tied", _auto("llama", **GROUPED, tie_word_embeddings=True), "decoder"),
    Family("mistral", _auto("mistral", **GROUPED), "decoder"),
    Family("qwen2", _auto("qwen2", **GROUPED), "decoder"),
    Family("qwen3", _auto("qwen3", **GROUPED, head_dim=8), "decoder"),
    Family("gemma2", _auto("gemma2", **GROUPED, head_dim=8), "decoder"),
    Family("gemma3", _auto("gemma3_text", **GROUPED, head_dim=8), "decoder"),
    Family("phi3", _auto("phi3", **GROUPED), "decoder"),
    Family("opt", _auto("opt", **{**BASE, "ffn_dim": 56, "word_embed_proj_dim": 32}), "decoder"),
    Family("gpt2", _auto("gpt2", **GPT2), "decoder"),
    Family("gpt-neox", _auto("gpt_neox", **BASE), "decoder"),
    Family("falcon", _auto("falcon", **BASE, new_decoder_architecture=True, num_kv_heads=2), "decoder"),
    Family("falcon-multi-query", _auto("falcon", **BASE), "decoder"),
    Family("bloom", _auto("bloom", vocab_size=96, hidden_size=32, n_layer=2, n_head=4, **SPECIAL), "decoder"),
    Family("deepseek-v3", _auto("deepseek_v3", **BASE, **LATENT), "mixture"),
    Family("mixtral", _auto("mixtral", **GROUPED, num_local_experts=4), "mixture"),
    Family(
        "qwen3-moe",
        _auto("qwen3_moe", **GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20),
        "mixture",
    ),
    Family("olmoe", _auto("olmoe", **GROUPED, num_experts=4, num_experts_per_tok=2), "mixture"),
    Family("deepseek-moe", _auto("deepseek_v2", **BASE, **{**LATENT, "q_lora_rank": None}), "mixture"),
    Family(
        "mamba", _auto("mamba", vocab_size=96, hidden_size=16, num_hidden_layers=2, state_size=4, **SPECIAL), "state"
    ),
    Family(
        "mamba2",
        _auto("mamba2", vocab_size=96, hidden_size=16, num_hidden_layers=2, state_size=6, num_heads=4, head_dim=8,
              n_groups=2, chunk_size=8, **SPECIAL),
        "state",
    ),
    Family(
        "jamba",
        _auto("jamba", **GROUPED, num_experts=4, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1,
              expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4),
        "state",
    ),
    Family("bert", _auto("bert", "AutoModelForSequenceClassification", **BASE), "encoder"),
    Family("bert-masked", _auto("bert", "AutoModelForMaskedLM", **BASE), "encoder"),
    Family("roberta", _auto("roberta", "AutoModelForMaskedLM", **BASE), "encoder"),
    Family("minilm", _auto("bert", "AutoModel", **_MINILM), "encoder"),
    Family("t5", _auto("t5", "AutoModelForSeq2SeqLM", vocab_size=96, d_model=32, d_kv=8, d_ff=56, num_layers=2,
                       num_heads=4, decoder_start_token_id=0, **SPECIAL), "encoder"),
    Family("t5-gated", _auto("t5", "AutoModelForSeq2SeqLM", vocab_size=96, d_model=32, d_kv=8, d_ff=56, num_layers=2,
                             num_heads=4, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **SPECIAL),
           "encoder"),
    Family("whisper", _auto("whisper", "AutoModelForSpeechSeq2Seq", vocab_size=96, d_model=32, encoder_layers=2,
                            decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                            encoder_ffn_dim=56, decoder_ffn_dim=56, num_mel_bins=8, max_source_positions=12,
                            max_target_positions=16, decoder_start_token_id=1, suppress_tokens=None,
                            begin_suppress_tokens=None, **SPECIAL), "encoder"),
    Family("vit", _auto("vit", "AutoModelForImageClassification", **VISION, num_labels=7), "vision"),
    Family("swin", _auto("swin", "AutoModelForImageClassification", image_size=16, patch_size=2, embed_dim=16,
                         depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=7), "vision"),
    Family("clip", _clip, "vision"),
    Family("resnet", _auto("resnet", "AutoModelForImageClassification", embedding_size=8, hidden_sizes=[16, 24],
                           depths=[2, 2], num_labels=7), "vision",
           lambda _: {"pixel_values": _image(32)}),
    Family("resnet-torch", ResNet, "vision", lambda _: {"x": _image(32)}),
    Family("mobilenet-v2", _auto("mobilenet_v2", "AutoModelForImageClassification", image_size=32,
                                 depth_multiplier=0.25, depth_divisible_by=4, min_depth=4,
                                 first_layer_is_expansion=True, num_labels=7), "vision"),
    Family("dit", _dit, "diffusion"),
    Family("unet", _unet, "diffusion"),
    Family("unet-condition", _unet_condition, "diffusion"),
    Family("transformer-encoder", lambda: Classifier(norm_first=False), "plain"),
    Family("transformer-encoder-pre", lambda: Classifier(norm_first=True), "plain"),
    Family("twice", Twice, "plain"),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}


def _image(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=stream(0, "image"))
