"""Changes of basis that leave a network's function as it is: `choose(symmetries, source, statistics, *, generator)`.

A method looks at the symmetries of a network's edges and answers with folds, one transform each; `Rewritten` multiplies
them in. One that changes the structure (a tie, a norm's kind) has `rewrite(network) -> network` instead.
"""

from pennyweight.methods.rewrites.fold_norms import FoldNorms
from pennyweight.methods.rewrites.untie import Untie

METHODS = (FoldNorms, Untie)

__all__ = ["METHODS", "FoldNorms", "Untie"]
