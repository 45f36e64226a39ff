"""How stored codes are chosen: `compress(weight, statistics, format, *, generator) -> Compressed`."""

from pennyweight.methods.quantization.adaquant import AdaQuant
from pennyweight.methods.quantization.awq_clip import AWQClip
from pennyweight.methods.quantization.coordinate_descent import CoordinateDescent
from pennyweight.methods.quantization.decoupleq import DecoupleQ
from pennyweight.methods.quantization.equal_error import EqualError
from pennyweight.methods.quantization.gptq import GPTQ
from pennyweight.methods.quantization.gptvq import GPTVQ
from pennyweight.methods.quantization.hqq import HQQ
from pennyweight.methods.quantization.percentile import Percentile
from pennyweight.methods.quantization.recu import ReCU
from pennyweight.methods.quantization.round_to_nearest import RoundToNearest
from pennyweight.methods.quantization.zeroquant_fp import ZeroQuantFP

METHODS = (
    AdaQuant,
    AWQClip,
    CoordinateDescent,
    DecoupleQ,
    EqualError,
    GPTQ,
    GPTVQ,
    HQQ,
    Percentile,
    ReCU,
    RoundToNearest,
    ZeroQuantFP,
)

__all__ = [
    "GPTQ",
    "GPTVQ",
    "HQQ",
    "METHODS",
    "AWQClip",
    "AdaQuant",
    "CoordinateDescent",
    "DecoupleQ",
    "EqualError",
    "Percentile",
    "ReCU",
    "RoundToNearest",
    "ZeroQuantFP",
]
