from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pennyweight.errors import InvalidBudget, InvalidMeasurement, InvalidMethod, UnknownName
from pennyweight.flow.certifying.compare import certify_outputs, compare, fingerprint_of
from pennyweight.methods.measurement import Classification, Cosine, KullbackLeibler, PythonFunction, Ranking

COUNT = 1500


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rounded(weight: Tensor, bits: int) -> Tensor:
    scale = weight.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (weight / scale).round() * scale


def classifier(bits: int | None) -> nn.Module:
    """Two layers with fixed random weights, rounded to so many bits."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)).requires_grad_(False)
    for i, parameter in enumerate(model.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=generator(i)))
        if bits is not None and parameter.dim() == 2:
            parameter.copy_(rounded(parameter, bits))
    return model


def inputs(count: int = COUNT) -> tuple[list[Tensor], list[int]]:
    items = list(torch.randn(count, 16, generator=generator(7)))
    right = classifier(None)(torch.stack(items)).argmax(-1)
    noise = torch.rand(count, generator=generator(8)) < 0.2  # the reference is right four times out of five
    return items, torch.where(noise, (right + 1) % 5, right).tolist()


def listed(model: nn.Module) -> Callable[[list[Tensor]], Tensor]:
    return lambda items: model(torch.stack(items))


@pytest.fixture(scope="module")
def data() -> tuple[list[Tensor], list[int]]:
    return inputs()


def test_one_at_a_time_or_in_batches(data: tuple[list[Tensor], list[int]]) -> None:
    items, targets = data
    before, after = classifier(None), classifier(4)
    alone = compare(before, after, items, Classification(), targets=targets)
    batched = compare(listed(before), listed(after), items, "classification", targets=targets, batch=64)
    assert np.array_equal(alone.compressed, batched.compressed)
    assert alone.fingerprint == batched.fingerprint
    stacked = torch.stack(items)
    wrong = [(model(stacked).argmax(-1) != torch.tensor(targets)).double().mean() for model in (before, after)]
    assert alone.reference.mean() == pytest.approx(float(wrong[0]))
    assert alone.compressed.mean() == pytest.approx(float(wrong[1]))
    assert alone.unit == "share of inputs"


def test_a_close_classifier_is_certified_before_every_item_was_scored(data: tuple[list[Tensor], list[int]]) -> None:
    items, targets = data
    before, after = classifier(None), classifier(8)
    made = certify_outputs(
        listed(before), listed(after), items, Classification(), 0.1, targets=targets, weights="int8", batch=16
    )
    claim = made.claims[0]
    assert made.holds
    assert claim.verdict == "certified"
    assert claim.scored < claim.terms.population < COUNT
    truth = compare(listed(before), listed(after), items, Classification(), targets=targets, batch=16)
    assert truth.degradation.mean() <= claim.bound <= 0.1
    assert "items (sha256" in made.statement
    assert "accuracy falls by at most" in made.statement


def test_a_bad_classifier_is_not_certified(data: tuple[list[Tensor], list[int]]) -> None:
    items, targets = data
    before, after = classifier(None), classifier(2)
    truth = compare(before, after, items, Classification(), targets=targets)
    assert truth.degradation.mean() > 0.1
    made = certify_outputs(before, after, items, Classification(), 0.05, targets=targets, weights="int2")
    assert not made.holds
    assert made.claims[0].verdict in ("futile", "exact", "exhausted")


def test_the_order_follows_from_weights_and_salt(data: tuple[list[Tensor], list[int]]) -> None:
    items, targets = data

    def seed(**changes: Any) -> str:
        settings = {"weights": "a", "targets": targets, **changes}
        made = certify_outputs(classifier(None), classifier(8), items, "classification", 0.1, **settings)
        return made.claims[0].scope

    def limited(margin: float) -> str:
        settings: dict[str, Any] = {"weights": "a", "targets": targets}
        made = certify_outputs(classifier(None), classifier(8), items, "classification", margin, **settings)
        return made.claims[0].scope

    assert seed() == seed()
    assert len({seed(), seed(weights="b"), seed(salt="x"), seed(targets=targets[1:] + targets[:1])}) == 4
    # no ledger is kept of these: whoever picks a margin or a level after the scores draws for it anew
    assert len({seed(), seed(confidence=0.9), seed(engine="hedged-capital"), *map(limited, (0.1, 0.11))}) == 4


def embed(bits: int | None) -> Callable[[list[int]], Tensor]:
    """Rows of a table: query and candidates to their embeddings."""
    table = torch.randn(400, 24, generator=generator(3))
    table = table if bits is None else rounded(table, bits)
    return lambda texts: table[texts]


def test_embeddings_and_rankings() -> None:
    pick = np.random.default_rng(5)
    items = [pick.choice(400, 10, replace=False).tolist() for _ in range(400)]
    table = embed(None)
    targets = [int((table(item)[1:] @ table(item)[0]).argmax()) for item in items]
    made = certify_outputs(table, embed(6), items, Ranking(), 0.1, targets=targets, weights="six bits")
    truth = compare(table, embed(6), items, Ranking(), targets=targets)
    assert made.holds
    assert truth.degradation.mean() <= made.claims[0].bound
    texts = [[i] for i in range(400)]
    first = compare(lambda t: table(t)[0], lambda t: embed(4)(t)[0], texts, Cosine())
    assert 0.001 < first.degradation.mean() < 0.1
    claim = certify_outputs(
        lambda t: table(t)[0], lambda t: embed(4)(t)[0], texts, Cosine(), 0.05, weights="four bits", confidence=0.9
    ).claims[0]
    assert claim.holds
    assert first.degradation.mean() <= claim.bound <= 0.05


def test_a_function_of_the_user_and_a_small_set() -> None:
    items = list(range(60))
    metric = PythonFunction(function=lambda a, b: abs(a - b), lower=0.0, upper=1.0)
    close = certify_outputs(lambda x: x / 60, lambda x: x / 60 + 0.01, items, metric, 0.1, weights="w")
    assert close.holds
    assert close.claims[0].bound >= 0.01 - 1e-9
    assert close.claims[0].terms.population == 60  # too few to set some aside
    bad = certify_outputs(lambda x: x / 60, lambda x: x / 60 + 0.5, items, metric, 0.1, weights="w")
    assert not bad.holds


def test_a_pilot_of_other_items(data: tuple[list[Tensor], list[int]]) -> None:
    items, targets = data
    before, after = listed(classifier(None)), listed(classifier(8))
    pilot = compare(before, after, items[:200], "classification", targets=targets[:200], batch=50)
    rest = {"targets": targets[200:], "weights": "w", "batch": 50}
    made = certify_outputs(before, after, items[200:], "classification", 0.1, pilot=pilot, **rest)  # type: ignore[arg-type]
    assert made.claims[0].terms.population == COUNT - 200
    assert made.claims[0].terms.pilot_mean == pytest.approx(pilot.degradation.mean())
    same = compare(before, after, items, "classification", targets=targets, batch=50)
    with pytest.raises(InvalidMeasurement, match="items themselves"):
        certify_outputs(before, after, items, "classification", 0.1, pilot=same, targets=targets, weights="w")
    with pytest.raises(InvalidMeasurement, match="measures classification"):
        certify_outputs(before, after, items, "cosine", 0.1, pilot=pilot, weights="w")


def test_source_takes_one_item_of_each_document() -> None:
    items, documents = list(range(600)), [i // 2 for i in range(600)]
    metric = PythonFunction(function=lambda a, b: b - a, lower=0.0, upper=1.0)

    def after(x: int) -> float:
        return 0.02 * (x % 3)

    made = certify_outputs(
        lambda x: 0.0, after, items, metric, 0.3, weights="w", scope="source", documents=documents
    )  # fmt: skip
    claim = made.claims[0]
    assert made.holds
    assert claim.terms.population is None
    assert claim.scored <= 300
    assert claim.bound > 0.02


def test_source_never_plans_on_the_documents_it_is_about() -> None:
    """Ten items a document: every document is met by the items that would plan, so none are set aside."""
    items = list(range(600))
    metric = PythonFunction(function=lambda a, b: b - a, lower=0.0, upper=1.0)
    settings: dict[str, Any] = {"weights": "w", "documents": [i % 60 for i in items]}

    def made(scope: str) -> Any:
        found = certify_outputs(lambda x: 0.0, lambda x: 0.05 * (x % 3), items, metric, 0.5, scope=scope, **settings)
        return found.claims[0]

    source, corpus = made("source"), made("corpus")
    assert "the 600 items" in source.scope
    assert source.terms.pilot_mean == pytest.approx(0.02)  # assumed: the items were not looked at
    assert corpus.terms.population == 510  # nothing is asked of documents here, so items may plan


def test_a_negative_document_is_refused() -> None:
    items = list(range(60))
    metric = PythonFunction(function=lambda a, b: b - a, lower=0.0, upper=1.0)
    documents = [-1] * 10 + items[10:]
    with pytest.raises(InvalidMeasurement, match="document -1 is negative"):
        certify_outputs(
            lambda x: 0.0, lambda x: float(x < 10), items, metric, 0.1, weights="w", documents=documents, scope="source"
        )
    with pytest.raises(InvalidMeasurement, match="a number of its own"):
        compare(lambda x: 0.0, lambda x: 0.0, items, metric, documents=documents)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5])
def test_a_score_outside_the_declared_range_names_the_item(value: float) -> None:
    metric = PythonFunction(function=lambda a, b: value if a == 17 else 0.0, lower=0.0, upper=1.0)
    with pytest.raises(InvalidMeasurement, match="item 17"):
        compare(lambda x: x, lambda x: x, list(range(30)), metric)


class Liar(Classification):
    """A metric of a user that leaves the range it declares."""

    def measure(self, reference: Any, compressed: Any, target: Any) -> tuple[float, float]:
        return 0.0, 3.0


def test_bad_input_is_refused(data: tuple[list[Tensor], list[int]]) -> None:
    items, targets = data[0][:40], data[1][:40]
    model = classifier(None)
    with pytest.raises(InvalidMeasurement, match="39 targets for 40 items"):
        compare(model, model, items, "classification", targets=targets[1:])
    with pytest.raises(InvalidMeasurement, match="1 documents for 40 items"):
        compare(model, model, items, "classification", targets=targets, documents=[0])
    with pytest.raises(InvalidMeasurement, match="no items"):
        compare(model, model, [], "classification", targets=[])
    with pytest.raises(InvalidMeasurement, match="1 items cannot carry a claim"):
        certify_outputs(model, model, items[:1], "classification", 0.1, targets=targets[:1], weights="w")
    with pytest.raises(InvalidMeasurement, match="item 0: cannot be computed from these outputs and no target"):
        compare(model, model, items, "classification")
    with pytest.raises(InvalidMeasurement, match="item 3"):
        compare(model, model, items, "classification", targets=[*targets[:3], 9, *targets[4:]])
    with pytest.raises(InvalidMeasurement, match="returns 5 outputs for 40 items"):
        compare(listed(model), lambda x: model(x[0]), items, "classification", targets=targets, batch=64)
    with pytest.raises(InvalidMeasurement, match="the degradation is 3"):
        compare(model, model, items, Liar(), targets=targets)
    with pytest.raises(InvalidMethod, match="kl does not read outputs"):
        compare(model, model, items, KullbackLeibler())
    with pytest.raises(InvalidMethod, match="batch of 0"):
        compare(model, model, items, "cosine", batch=0)
    with pytest.raises(UnknownName):
        compare(model, model, items, "cosinus")
    with pytest.raises(InvalidMeasurement, match="canonical form"):
        compare(str, str, [object(), object()], "cosine")
    for margin, confidence in ((0.0, 0.95), (float("nan"), 0.95), (0.1, 1.0)):
        with pytest.raises(InvalidBudget):
            certify_outputs(
                model, model, items, "classification", margin, targets=targets, weights="w", confidence=confidence
            )


def test_a_margin_that_every_model_meets(data: tuple[list[Tensor], list[int]]) -> None:
    with pytest.raises(InvalidBudget, match="met by every model"):
        certify_outputs(
            classifier(None), classifier(8), data[0], "classification", 1.0, targets=data[1], weights="w"
        )  # fmt: skip


def test_fingerprints_see_values_kinds_and_order() -> None:
    items: list[Any] = [1, "1", 1.5, b"1", torch.tensor([1]), torch.tensor([1.0]), np.array([1]), [1], {"a": 1}]
    found = [fingerprint_of([item]) for item in items]
    assert len(set(found)) == len(items)
    assert fingerprint_of([torch.tensor([1])]) == found[4]
    assert fingerprint_of([1, 2]) != fingerprint_of([2, 1])
    assert fingerprint_of([1], [0]) != fingerprint_of([1])
    assert fingerprint_of([{"a": 1, "b": 2}]) == fingerprint_of([{"b": 2, "a": 1}])
