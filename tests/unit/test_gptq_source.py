import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.export.gptq.source import GPTQSource, is_gptq
from pennyweight.flow.load import load
from pennyweight.numerics.packing import pack_int32
from pennyweight.numerics.random import stream

NAME = "model.layers.0.mlp.down_proj"  # [64, 128]
GROUP = 32


def write(model: Path, out: Path, *, bits: int = 4, added: int = 1, shuffled: bool = False, **settings: Any) -> Tensor:
    """Write one site as GPTQ does and return the weight it stands for, computed one column at a time."""
    generator = stream(0, "gptq")
    tensors = load_file(model / "model.safetensors")
    rows, columns = tensors.pop(f"{NAME}.weight").shape
    groups = columns // GROUP
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)
    zeros = torch.randint(1, (1 << bits) - 1, (groups, rows), generator=generator).to(torch.uint8)
    scales = (torch.rand(groups, rows, generator=generator) + 0.5).half()
    g_idx = torch.arange(columns) // GROUP
    if shuffled:
        g_idx = g_idx[torch.randperm(columns, generator=generator)]
    tensors[f"{NAME}.qweight"] = pack_int32(codes, bits).T.contiguous()
    tensors[f"{NAME}.qzeros"] = pack_int32(zeros - added, bits)
    tensors[f"{NAME}.scales"], tensors[f"{NAME}.g_idx"] = scales, g_idx.to(torch.int32)
    out.mkdir(exist_ok=True)
    save_file(tensors, out / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": False, **settings}
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    weight = torch.empty(rows, columns)
    for i in range(columns):
        g = int(g_idx[i])
        weight[:, i] = scales[g].float() * (codes[:, i].float() - zeros[g].float())
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shuffled", [False, True])
def test_both_versions_are_read(llama_directory: Path, tmp_path: Path, bits: int, shuffled: bool) -> None:
    first = write(llama_directory, tmp_path / "v1", bits=bits, shuffled=shuffled, checkpoint_format="gptq")
    second = write(llama_directory, tmp_path / "v2", bits=bits, shuffled=shuffled, added=0, checkpoint_format="gptq_v2")
    assert torch.equal(first, second)
    for version in ("v1", "v2"):
        assert is_gptq(tmp_path / version)
        network = load(tmp_path / version)
        assert torch.equal(network.source.read(f"{NAME}.weight"), first)
        assert network.source.tensors[f"{NAME}.weight"].dtype == f"int{bits} g32"
        assert "quantization_config" not in network.source.config
    assert not is_gptq(llama_directory)


def test_three_bits_lie_as_autogptq_packs_them() -> None:
    """Ten codes a word and two that straddle words: 32 codes in three of them, written down one by one."""
    code = torch.randint(0, 8, (32,), generator=stream(0, "three bits")).tolist()
    words = [
        sum(code[i] << 3 * i for i in range(10)) | code[10] << 30,
        code[10] >> 2 | sum(code[i] << 3 * (i - 11) + 1 for i in range(11, 21)) | code[21] << 31,
        code[21] >> 1 | sum(code[i] << 3 * (i - 22) + 2 for i in range(22, 32)),
    ]
    found = pack_int32(torch.tensor([code], dtype=torch.uint8), 3)
    assert [int(word) & 0xFFFFFFFF for word in found[0]] == [word & 0xFFFFFFFF for word in words]


def test_what_cannot_be_read_is_named(llama_directory: Path, tmp_path: Path) -> None:
    write(llama_directory, tmp_path, checkpoint_format="marlin")
    with pytest.raises(InvalidModel, match="marlin"):
        GPTQSource(tmp_path)
    write(llama_directory, tmp_path, pack_dtype="int16")
    with pytest.raises(InvalidModel, match="32-bit words"):
        GPTQSource(tmp_path)
    write(llama_directory, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damaged = {**tensors, f"{NAME}.qzeros": torch.full_like(tensors[f"{NAME}.qzeros"], -1)}
    save_file(damaged, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match="zero point of 15"):
        GPTQSource(tmp_path).read(f"{NAME}.weight")
    save_file({**tensors, f"{NAME}.g_idx": torch.full((128,), 4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match="no scale"):
        GPTQSource(tmp_path).read(f"{NAME}.weight")
    save_file(
        {**tensors, f"{NAME}.qzeros": tensors[f"{NAME}.qzeros"][:, :-1].contiguous()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(InvalidModel, match="do not fit together"):
        GPTQSource(tmp_path)
    del tensors[f"{NAME}.scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match="scales is missing"):
        GPTQSource(tmp_path)


def test_what_is_stored_is_one_of_our_grids(llama_directory: Path, tmp_path: Path) -> None:
    weight = write(llama_directory, tmp_path / "in order", checkpoint_format="gptq")
    part = GPTQSource(tmp_path / "in order").read_part(f"{NAME}.weight")
    assert part.format.label() == "int4 g32 asym"
    assert torch.equal(part.format.decode(part.tensors, (64, 128)), weight)
    write(llama_directory, tmp_path / "shuffled", shuffled=True, checkpoint_format="gptq")
    with pytest.raises(InvalidModel, match="not in the order"):
        GPTQSource(tmp_path / "shuffled").read_part(f"{NAME}.weight")
    with pytest.raises(InvalidModel, match="stored dense"):
        GPTQSource(tmp_path / "in order").read_part("model.norm.weight")
