"""Probability: are the probabilities of a model still right, how rare is its worst, and what repairs them."""

from pennyweight.methods.probability.binomial import clopper_pearson, upper_bound
from pennyweight.methods.probability.brier import Brier
from pennyweight.methods.probability.expected_calibration_error import (
    CalibrationBin,
    CalibrationError,
    ExpectedCalibrationError,
)
from pennyweight.methods.probability.expected_shortfall import ExpectedShortfall, Shortfall
from pennyweight.methods.probability.tail_risk import ImportanceSampling, TailCertificate, TailEstimate
from pennyweight.methods.probability.temperature import TemperatureScaling

METHODS = (Brier, ExpectedCalibrationError, ExpectedShortfall, ImportanceSampling, TemperatureScaling)

__all__ = [
    "METHODS",
    "Brier",
    "CalibrationBin",
    "CalibrationError",
    "ExpectedCalibrationError",
    "ExpectedShortfall",
    "ImportanceSampling",
    "Shortfall",
    "TailCertificate",
    "TailEstimate",
    "TemperatureScaling",
    "clopper_pearson",
    "upper_bound",
]
