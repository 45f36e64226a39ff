"""A predictor of measured values from levels: the better of a linear and a smooth one, by cross-validation.

Source: the predictors of SimQ-NAS (arXiv:2312.13301) in DyNAS-T: ridge regression and support vectors with a Gaussian
kernel, chosen by the mean absolute percentage error of values that are divided by a power of ten.
Departs from it: a few strengths of either are tried, evenly spaced in logarithm, and not a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pennyweight.errors import MissingExtra
from pennyweight.methods.search.pareto import Floats

ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the ridge
COSTS = (1.0, 3.0, 10.0, 30.0, 100.0)  # of an error beside the margin, for support vectors
FOLDS = 5
LEAST = 1e-9  # of a value: errors are shares of it


def fitted(features: Floats, values: Sequence[float], seed: int) -> Callable[[Floats], Floats]:
    """The better predictor of values above zero, grown on all of them.

    Args:
        features: `[n, features]`, two rows at least.
        values: of each row.
        seed: of the folds.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    y = np.maximum(np.array(values), LEAST)
    scale = 10.0 ** (np.floor(np.log10(y.max())) - 1)
    grown = [model.fit(features, y / scale) for model in candidates(seed, min(FOLDS, len(values)))]
    best = max(grown, key=lambda model: float(model.best_score_))
    return lambda rows: np.asarray(best.predict(rows), dtype=np.float64) * scale


def candidates(seed: int, folds: int = FOLDS) -> list[Any]:
    """Both kinds of predictors, each to find its own strength on the same folds.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import GridSearchCV, KFold
        from sklearn.svm import SVR
    except ImportError as error:
        raise MissingExtra(
            "scikit-learn is not installed, whose predictors this search grows",
            mend="pip install 'pennyweight[search]'", site="simq_nas",
        ) from error  # fmt: skip
    judged = {
        "scoring": "neg_mean_absolute_percentage_error",
        "cv": KFold(folds, shuffle=True, random_state=seed % 2**31),
    }
    return [
        GridSearchCV(Ridge(), {"alpha": ALPHAS}, **judged),
        GridSearchCV(SVR(epsilon=0.0), {"C": COSTS}, **judged),
    ]
