"""Write the benchmark's model: the embedded default, dequantised, off the grid its weights were rounded to.

Permuting the residual stream, the hidden units of each MLP and the value channels of each head leaves the function as
it is (up to the order of additions) and takes every group of 32 weights apart.

    python make_model.py OUT
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pennyweight.network.sources.gguf import GGUFSource, embedded_default
from pennyweight.numerics.random import stream

SEED = 20


def main(out: Path) -> None:
    source = GGUFSource(embedded_default())
    config = source.config
    tensors = {name: source.read(name).float() for name in source.tensors}
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    residual = torch.randperm(config["hidden_size"], generator=stream(SEED, "residual"))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        tensors[name] = tensors[name][..., residual]
    for i in range(config["num_hidden_layers"]):
        base = f"model.layers.{i}"

        def change(part: str, rows: torch.Tensor | None, columns: torch.Tensor | None, base: str = base) -> None:
            weight = tensors[f"{base}.{part}.weight"]
            weight = weight if rows is None else weight[rows]
            tensors[f"{base}.{part}.weight"] = (weight if columns is None else weight[..., columns]).contiguous()

        hidden = torch.randperm(config["intermediate_size"], generator=stream(SEED, base, "mlp"))
        orders = [torch.randperm(size, generator=stream(SEED, base, "v", str(h))) for h in range(kv)]
        values = torch.cat([h * size + order for h, order in enumerate(orders)])
        reads = torch.cat([h * size + orders[h // (heads // kv)] for h in range(heads)])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            change(norm, None, residual)
        change("self_attn.q_proj", None, residual)
        change("self_attn.k_proj", None, residual)
        change("self_attn.v_proj", values, residual)
        change("self_attn.o_proj", residual, reads)
        change("mlp.gate_proj", hidden, residual)
        change("mlp.up_proj", hidden, residual)
        change("mlp.down_proj", residual, hidden)
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors", {"format": "pt"}
    )
    for name, content in source.auxiliary().items():
        (out / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    (out / "config.json").write_text(json.dumps({**config, "rope_theta": 100000.0}, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
