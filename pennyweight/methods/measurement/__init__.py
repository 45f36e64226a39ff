"""How much worse, one unit at a time: `measure(reference, compressed, ...) -> (score, score)`, larger is worse.

What a metric compares is in `reads`: `tokens` (log-probabilities of the next token, a score a position), `choices` and
`text` (answers to a question), or `outputs` (of an embedding model, a classifier, anything). `lower` and `upper` limit
the degradation of a unit, None where nothing does; `growth` is the power of the divergence between the models that the
degradation grows with; `phrase` says a bound in words, as a percentage if `percent`.
"""

from pennyweight.methods.measurement.accuracy import Accuracy
from pennyweight.methods.measurement.accuracy_bytes import AccuracyBytes
from pennyweight.methods.measurement.accuracy_normalised import AccuracyNormalised
from pennyweight.methods.measurement.agreement import Agreement
from pennyweight.methods.measurement.answer_changes import AnswerChanges
from pennyweight.methods.measurement.choice_brier import ChoiceBrier
from pennyweight.methods.measurement.classification import Classification
from pennyweight.methods.measurement.cosine import Cosine
from pennyweight.methods.measurement.exact_match import ExactMatch
from pennyweight.methods.measurement.flips import Flips
from pennyweight.methods.measurement.hellinger import Hellinger
from pennyweight.methods.measurement.jensen_shannon import JensenShannon
from pennyweight.methods.measurement.kullback_leibler import KullbackLeibler
from pennyweight.methods.measurement.perplexity import Perplexity
from pennyweight.methods.measurement.python_function import PythonFunction
from pennyweight.methods.measurement.ranking import Ranking
from pennyweight.methods.measurement.top_agreement import TopAgreement
from pennyweight.methods.measurement.total_variation import TotalVariation

METHODS = (
    Accuracy,
    AccuracyBytes,
    AccuracyNormalised,
    Agreement,
    AnswerChanges,
    ChoiceBrier,
    Classification,
    Cosine,
    ExactMatch,
    Flips,
    Hellinger,
    JensenShannon,
    KullbackLeibler,
    Perplexity,
    PythonFunction,
    Ranking,
    TopAgreement,
    TotalVariation,
)

__all__ = [
    "METHODS",
    "Accuracy",
    "AccuracyBytes",
    "AccuracyNormalised",
    "Agreement",
    "AnswerChanges",
    "ChoiceBrier",
    "Classification",
    "Cosine",
    "ExactMatch",
    "Flips",
    "Hellinger",
    "JensenShannon",
    "KullbackLeibler",
    "Perplexity",
    "PythonFunction",
    "Ranking",
    "TopAgreement",
    "TotalVariation",
]
