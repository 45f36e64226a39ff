"""What is trained after codes are chosen: `recover(piece, parts, weights, *, seed, advance) -> (parts, record)`."""

from pennyweight.methods.recovery.average_hessian import AverageHessian
from pennyweight.methods.recovery.block_wise import BlockWise
from pennyweight.methods.recovery.corrected_target import CorrectedTarget
from pennyweight.methods.recovery.end_to_end import EndToEnd
from pennyweight.methods.recovery.low_rank_mimicking import LowRankMimicking
from pennyweight.methods.recovery.tequila import Tequila

METHODS = (
    AverageHessian,
    BlockWise,
    CorrectedTarget,
    EndToEnd,
    LowRankMimicking,
    Tequila,
)

__all__ = ["METHODS", "AverageHessian", "BlockWise", "CorrectedTarget", "EndToEnd", "LowRankMimicking", "Tequila"]
