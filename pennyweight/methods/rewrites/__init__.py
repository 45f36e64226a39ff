"""Changes of basis that leave a network's function as it is: `choose(symmetries, source, statistics, *, generator)`.

A method looks at the symmetries of a network's edges and answers with folds, one transform each; `Rewritten` multiplies
them in. One that changes the structure (a tie, a norm's kind) has `rewrite(network) -> network` instead.
"""

from pennyweight.methods.rewrites.awq_scales import AWQScales
from pennyweight.methods.rewrites.centre_writers import CentreWriters
from pennyweight.methods.rewrites.cross_layer_equalization import CrossLayerEqualization
from pennyweight.methods.rewrites.dead_channels import RemoveDeadChannels
from pennyweight.methods.rewrites.fold_batch_norm import FoldBatchNorm
from pennyweight.methods.rewrites.fold_norms import FoldNorms
from pennyweight.methods.rewrites.hadamard import Hadamard
from pennyweight.methods.rewrites.layer_to_rms import LayerToRMS
from pennyweight.methods.rewrites.learned_rotation import LearnedRotation
from pennyweight.methods.rewrites.learned_scale import LearnedScale
from pennyweight.methods.rewrites.merge_duplicates import MergeDuplicates
from pennyweight.methods.rewrites.outlier_suppression_plus import OutlierSuppressionPlus
from pennyweight.methods.rewrites.permute_channels import PermuteChannels
from pennyweight.methods.rewrites.random_rotation import RandomRotation
from pennyweight.methods.rewrites.repq import RepQ
from pennyweight.methods.rewrites.smooth_attention import SmoothAttention
from pennyweight.methods.rewrites.smoothquant import SmoothQuant
from pennyweight.methods.rewrites.smoothquant_plus import SmoothQuantPlus
from pennyweight.methods.rewrites.split_quant import SplitQuant
from pennyweight.methods.rewrites.untie import Untie
from pennyweight.methods.rewrites.widely_linear import WidelyLinear

METHODS = (
    AWQScales,
    CentreWriters,
    CrossLayerEqualization,
    FoldBatchNorm,
    FoldNorms,
    Hadamard,
    LayerToRMS,
    LearnedRotation,
    LearnedScale,
    MergeDuplicates,
    OutlierSuppressionPlus,
    PermuteChannels,
    RandomRotation,
    RemoveDeadChannels,
    RepQ,
    SmoothAttention,
    SmoothQuant,
    SmoothQuantPlus,
    SplitQuant,
    Untie,
    WidelyLinear,
)

__all__ = [
    "METHODS",
    "AWQScales",
    "CentreWriters",
    "CrossLayerEqualization",
    "FoldBatchNorm",
    "FoldNorms",
    "Hadamard",
    "LayerToRMS",
    "LearnedRotation",
    "LearnedScale",
    "MergeDuplicates",
    "OutlierSuppressionPlus",
    "PermuteChannels",
    "RandomRotation",
    "RemoveDeadChannels",
    "RepQ",
    "SmoothAttention",
    "SmoothQuant",
    "SmoothQuantPlus",
    "SplitQuant",
    "Untie",
    "WidelyLinear",
]
