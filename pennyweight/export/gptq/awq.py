"""Read an AWQ checkpoint of the layout `gemm`, as AutoAWQ and GPTQModel write it: 4 bits, packed along the outputs.

Source: GPTQModel 7.7, `quantization/awq/utils/packing_utils.py`, run in the tests' stead on the same words; Lin et al.
AWQ: Activation-aware Weight Quantization. MLSys 2024. arXiv:2306.00978 (what the codes mean). A word holds eight
outputs of one input, interleaved; zero points are stored as they are:

    weight[o, i] = scales[i // g, o] · (q[i, o] − z[i // g, o])
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pennyweight.export.gptq.source import GPTQSource, Packed, quantized_by
from pennyweight.numerics.packing import unpack_int32

BITS, EACH = 4, 8  # of a code; codes of a word
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of outputs 0 to 7 within a word


def is_awq(directory: str | os.PathLike[str]) -> bool:
    """Whether config.json in this directory says so; False where there is none.

    Raises:
        CorruptFile: config.json is there and is not JSON.
    """
    return quantized_by(directory) == AWQSource.method


class AWQSource(GPTQSource):
    """A checkpoint whose `tensors` are dense weights, whatever they are stored as; see `GPTQSource`."""

    method: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"

    def _read_settings(self, quantization: Mapping[str, Any]) -> int:
        version = str(quantization.get("version") or quantization.get("checkpoint_format") or "gemm").lower()
        if version != "gemm" or quantization.get("bits", BITS) != BITS:
            raise self._refusal(
                f"stored as {version} with {quantization.get('bits')} bits", expected="gemm with 4 bits"
            )
        return 0

    def _read_layout(self, module: str) -> Packed:
        stored, shapes = self._stored_shapes(module, ("qweight", "qzeros", "scales"))
        (columns, words), (groups, rows) = shapes["qweight"], shapes["scales"]
        types = {self._files.tensors[stored[role]].dtype for role in ("qweight", "qzeros")}
        fits = words * EACH == rows and shapes["qzeros"] == (groups, words) and types == {"int32"}
        if not fits or not groups or columns % groups:
            raise self._refusal(
                f"codes {list(shapes['qweight'])}, zero points {list(shapes['qzeros'])} and scales "
                f"{list(shapes['scales'])} do not fit together",
                module, expected="eight outputs to a word of int32, and groups that divide the inputs",
            )  # fmt: skip
        return Packed(BITS, (rows, columns), groups, stored)

    def _stored(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        packed = self._packed[name]
        raw = {role: self._files.read(stored) for role, stored in packed.stored.items()}
        codes, zeros = (self._unpacked(raw[role], packed.shape[0]) for role in ("qweight", "qzeros"))
        return codes.T.contiguous(), zeros.to(torch.int16), raw["scales"], self._group_of_column(name, None)

    def _unpacked(self, words: Tensor, rows: int) -> Tensor:
        """Codes `[.., out]` in the order of the outputs."""
        codes = unpack_int32(words, BITS, rows).reshape(len(words), -1, EACH)
        return codes[..., list(PLACES)].reshape(len(words), rows)
