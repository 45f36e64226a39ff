"""How much worse: `measure(reference, compressed, labels) -> (score, score)` a position, from log-probabilities."""

from pennyweight.methods.measurement.agreement import Agreement
from pennyweight.methods.measurement.kullback_leibler import KullbackLeibler
from pennyweight.methods.measurement.perplexity import Perplexity

METHODS = (Agreement, KullbackLeibler, Perplexity)

__all__ = ["METHODS", "Agreement", "KullbackLeibler", "Perplexity"]
