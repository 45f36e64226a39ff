"""The published schema is the one the code has, and describes what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from pennyweight.budget import Budget, Certificate, Claim, Opening, Slice, Terms
from pennyweight.flow.certifying.record import certificate_schema
from pennyweight.numerics.hashing import canonical

PUBLISHED = Path(__file__).parents[2] / "docs" / "concepts" / "certificate.schema.json"

TERMS = Terms(
    margin=0.02, cap=0.1, pilot_mean=0.0, pilot_sd=0.01, alpha=0.04, tail_alpha=0.01, population=400, n_max=90
)
CLAIM = Claim(
    budget=Budget.lose("2%"), metric="perplexity", score_unit="nats per token", holds=True, verdict="certified",
    scope="a text", counted="windows", rule="planned-mixture", anytime=True, terms=TERMS, scored=64, estimate=0.01,
    bound=0.019, log_wealth=3.4, above_cap=0, tail_bound=0.1, statement="On a text …",
    slices=(Slice(group="de", holds=False, scored=3, population=30, estimate=0.0, bound=0.1, alone=0.1),),
)  # fmt: skip
CERTIFICATE = Certificate(
    claims=(CLAIM,), holds=True, opening=Opening(number=1, alpha=0.05, spent=0.05), noise_floor={"kl": 1e-5},
    fingerprints={"model": "ab"}, statement="On a text …",
)  # fmt: skip


def test_the_published_schema_is_current() -> None:
    # `pennyweight schema > docs/concepts/certificate.schema.json` makes it
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == json.loads(json.dumps(certificate_schema()))


def test_a_certificate_fits_the_schema_and_comes_back() -> None:
    written = canonical(CERTIFICATE)
    jsonschema.validate(json.loads(written), certificate_schema())
    assert msgspec.json.decode(written, type=Certificate) == CERTIFICATE


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Certificate)])
def test_the_schema_misses_what_is_missing(field: str) -> None:
    value = json.loads(canonical(CERTIFICATE))
    del value[field]
    with pytest.raises(jsonschema.ValidationError, match=field):
        jsonschema.validate(value, certificate_schema())
