"""AWQ checkpoints: codes are packed here as its published packer does, one word at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.export.gptq.awq import AWQSource, is_awq
from pennyweight.flow.converting.convert import Settings, convert
from pennyweight.flow.load import load
from pennyweight.formats import parse
from pennyweight.numerics.random import stream

NAME = "model.layers.0.mlp.down_proj"  # [64, 128]
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each nibble of a word holds, lowest nibble first


def packed(codes: Tensor) -> Tensor:
    """`[rows, out]` to `[rows, out / 8]` words."""
    words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for nibble, output in enumerate(ORDER):
        words |= codes[:, output::8].long() << 4 * nibble
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def write(model: Path, out: Path, **settings: Any) -> Tensor:
    """Write one site and return the weight it stands for."""
    generator = stream(0, "awq")
    tensors = load_file(model / "model.safetensors")
    rows, columns = tensors.pop(f"{NAME}.weight").shape
    codes = torch.randint(0, 16, (columns, rows), generator=generator)
    zeros = torch.randint(0, 16, (columns // 32, rows), generator=generator)
    scales = (torch.rand(columns // 32, rows, generator=generator) + 0.5).half()
    tensors |= {f"{NAME}.qweight": packed(codes), f"{NAME}.qzeros": packed(zeros), f"{NAME}.scales": scales}
    out.mkdir(exist_ok=True)
    shutil.copyfile(model / "tokenizer.json", out / "tokenizer.json")
    save_file(tensors, out / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": {**quantization, **settings}}))
    each = scales.float().repeat_interleave(32, 0)
    return (each * (codes - zeros.repeat_interleave(32, 0)).float()).T


def test_words_are_read(llama_directory: Path, tmp_path: Path) -> None:
    weight = write(llama_directory, tmp_path)
    assert is_awq(tmp_path)
    assert not is_awq(llama_directory)
    network = load(tmp_path)
    assert torch.equal(network.source.read(f"{NAME}.weight"), weight)
    part = AWQSource(tmp_path).read_part(f"{NAME}.weight")
    assert part.format == parse("int4 g32 asym")
    assert torch.equal(part.format.decode(part.tensors, (64, 128)), weight)
    assert "AWQ" in network.source.description


def test_they_become_gptq_and_nothing_changes(llama_directory: Path, tmp_path: Path) -> None:
    weight = write(llama_directory, tmp_path / "awq")
    done = convert(tmp_path / "awq", tmp_path / "gptq", to="gptq", settings=Settings(windows=1, length=16))
    row = next(row for row in done.rows if row.name == f"{NAME}.weight")
    assert (row.after, row.how) == ("int4 g32 asym", "exact (same codes)")
    assert torch.equal(load(tmp_path / "gptq").source.read(f"{NAME}.weight"), weight)


@pytest.mark.parametrize("settings", [{"version": "gemv"}, {"bits": 3}])
def test_other_layouts_are_refused(settings: dict[str, Any], llama_directory: Path, tmp_path: Path) -> None:
    write(llama_directory, tmp_path, **settings)
    with pytest.raises(InvalidModel, match="stored as"):
        load(tmp_path)


def test_sizes_that_do_not_fit_are_refused(llama_directory: Path, tmp_path: Path) -> None:
    write(llama_directory, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{NAME}.qzeros"] = tensors[f"{NAME}.qzeros"][:, :-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match="do not fit together"):
        load(tmp_path)
    del tensors[f"{NAME}.scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match="scales is missing"):
        load(tmp_path)
