"""What calibration is shown: `degrade(pool, *, generator, other) -> pool`, images or windows of tokens."""

from pennyweight.methods.calibration.box_blur import BoxBlur
from pennyweight.methods.calibration.gaussian_noise import GaussianNoise
from pennyweight.methods.calibration.low_contrast import LowContrast
from pennyweight.methods.calibration.other_text import OtherText
from pennyweight.methods.calibration.token_noise import TokenNoise

METHODS = (BoxBlur, GaussianNoise, LowContrast, OtherText, TokenNoise)

__all__ = ["METHODS", "BoxBlur", "GaussianNoise", "LowContrast", "OtherText", "TokenNoise"]
