"""What calibration is shown: `degrade(pool, *, generator, other) -> pool`, images or windows of tokens.

A method whose `needs` name the model is handed one beside, `model=`: windows of tokens -> log-probabilities of the next
token of each, and how many of its tokens every expert of every layer got (`network/running/routing.py` makes one).
"""

from pennyweight.methods.calibration.box_blur import BoxBlur
from pennyweight.methods.calibration.expert_balanced import ExpertBalanced
from pennyweight.methods.calibration.gaussian_noise import GaussianNoise
from pennyweight.methods.calibration.low_contrast import LowContrast
from pennyweight.methods.calibration.other_text import OtherText
from pennyweight.methods.calibration.token_noise import TokenNoise

METHODS = (BoxBlur, ExpertBalanced, GaussianNoise, LowContrast, OtherText, TokenNoise)

__all__ = ["METHODS", "BoxBlur", "ExpertBalanced", "GaussianNoise", "LowContrast", "OtherText", "TokenNoise"]
