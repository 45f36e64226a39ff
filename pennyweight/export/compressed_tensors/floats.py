"""Read weights that a compressed-tensors checkpoint stores as small floats: FP8, MXFP8, MXFP4, NVFP4.

Source: the compressed-tensors package, version 0.20 (`naive_quantized`, `mx_utils`, `nvfp4.helpers`); the OCP
Microscaling specification for what the bits mean. Shares no code with what writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats import NVFP4, Microscaling, Minifloat, Part, Sharing

PAIRED = ("mxfp4-pack-quantized", "nvfp4-pack-quantized")  # two codes in a byte
EIGHT = ("float-quantized", "mxfp8-quantized")
LAYOUTS = (*EIGHT, *PAIRED)
SHARED = {"mxfp8-quantized": 32, "mxfp4-pack-quantized": 32, "nvfp4-pack-quantized": 16}  # inputs with one scale
SCALES = {"mxfp8-quantized": "uint8", "mxfp4-pack-quantized": "uint8", "nvfp4-pack-quantized": "float8_e4m3fn"}
ELEMENTS = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True)
class Floats:
    """One weight.

    Args:
        layout: as config.json calls it.
        shape: `[out, in]`.
        tile: rows and columns that share a scale.
        stored: names of its parts by role.
    """

    layout: str
    shape: tuple[int, int]
    tile: tuple[int, int]
    stored: Mapping[str, str]

    def read(self, read: Callable[[str], Tensor]) -> Tensor:
        """The weight in float32."""
        (rows, columns), (tall, wide) = self.shape, self.tile
        scale = self._scale(read)
        return self._numbers(read) * scale.repeat_interleave(tall, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]

    def part(self, read: Callable[[str], Tensor]) -> Part:
        """Codes and scales.

        Raises:
            InvalidFormat: no format of ours shares scales that way, or a code is no number.
        """
        numbers, stored = self._numbers(read), read(self.stored["weight_scale"])
        tensors = {"scale": stored.reshape(self._tiles())}
        format: Minifloat | Microscaling | NVFP4
        if self.layout == "float-quantized":
            element = ELEMENTS[read(self.stored["weight"]).dtype]
            rows, columns = self.tile
            whole = self.tile == self.shape and self.shape[0] > 1
            sharing = Sharing(None, None) if whole else Sharing(rows, None if columns == self.shape[1] else columns)
            dtype = str(stored.dtype).removeprefix("torch.")
            format = Minifloat(element=element, sharing=sharing, scale_dtype=dtype)
        elif self.layout == "nvfp4-pack-quantized":
            format, whole_scale = NVFP4(), read(self.stored["weight_global_scale"]).reshape(1)
            tensors["tensor_scale"] = 1 / whole_scale
            if not torch.equal(1 / tensors["tensor_scale"], whole_scale) or bool(torch.frexp(whole_scale)[0] != 0.5):
                raise InvalidFormat("a global scale that is no power of two", expected="one, as our files have")
        else:
            format = Microscaling(element="e4m3" if self.layout == "mxfp8-quantized" else "e2m1")
        values = format.values()
        codes = torch.searchsorted(values, numbers.contiguous()).clamp(max=len(values) - 1)
        if not torch.equal(values[codes], numbers):
            raise InvalidFormat("a code stands for no number", expected="finite numbers")
        return Part(format, {"codes": codes.to(torch.uint8), **tensors})

    def _tiles(self) -> tuple[int, int]:
        return -(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1])

    def _numbers(self, read: Callable[[str], Tensor]) -> Tensor:
        if self.layout not in PAIRED:
            return read(self.stored["weight"]).float()
        pairs = read(self.stored["weight_packed"])
        return E2M1[torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).int()]

    def _scale(self, read: Callable[[str], Tensor]) -> Tensor:
        stored = read(self.stored["weight_scale"]).reshape(self._tiles())
        if stored.dtype == torch.uint8:
            return torch.ldexp(torch.ones(stored.shape), stored.int() - 127)
        scale = stored.float()
        return scale / read(self.stored["weight_global_scale"]).float() if "nvfp4" in self.layout else scale
