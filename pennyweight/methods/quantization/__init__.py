"""How stored codes are chosen: `compress(weight, statistics, format, *, generator) -> Compressed`."""

from pennyweight.methods.quantization.gptq import GPTQ
from pennyweight.methods.quantization.round_to_nearest import RoundToNearest

METHODS = (GPTQ, RoundToNearest)

__all__ = ["GPTQ", "METHODS", "RoundToNearest"]
