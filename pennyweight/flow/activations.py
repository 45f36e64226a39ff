"""Roundings of what the sites of a network read, fitted to what was observed."""

from __future__ import annotations

from collections.abc import Mapping

from pennyweight import catalogue
from pennyweight.formats.passing import Quantizer
from pennyweight.plan import Input
from pennyweight.statistics import Statistics


def quantizers(inputs: Mapping[str, Input], statistics: Mapping[str, Statistics]) -> dict[str, Quantizer]:
    """A fitted rounding for every site.

    Args:
        inputs: by the name of a site, how what it reads is rounded.
        statistics: of `flow.observe.observe`, by `site:input`; methods that find ranges as tokens pass need none.

    Raises:
        UnknownName: a method nobody knows.
        InvalidMethod: a method that does not write the format.
        MissingStatistics: a static method, and nothing was seen of what the site reads.
    """
    return {
        site: catalogue.find(chosen.method, "activations").fit(statistics.get(f"{site}:input"), chosen.format)
        for site, chosen in inputs.items()
    }
