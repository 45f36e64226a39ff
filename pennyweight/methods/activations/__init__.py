"""How activations are rounded: `fit(statistics, format) -> Quantizer`, which gives codes of whatever passes."""

from pennyweight.methods.activations.dynamic import Dynamic
from pennyweight.methods.activations.sort_and_cluster import SortAndCluster
from pennyweight.methods.activations.state_groups import StateGroups
from pennyweight.methods.activations.static_entropy import StaticEntropy
from pennyweight.methods.activations.static_mse import StaticMSE
from pennyweight.methods.activations.static_percentile import StaticPercentile
from pennyweight.methods.activations.static_range import StaticRange

METHODS = (
    Dynamic,
    SortAndCluster,
    StateGroups,
    StaticEntropy,
    StaticMSE,
    StaticPercentile,
    StaticRange,
)

__all__ = [
    "METHODS",
    "Dynamic",
    "SortAndCluster",
    "StateGroups",
    "StaticEntropy",
    "StaticMSE",
    "StaticPercentile",
    "StaticRange",
]
