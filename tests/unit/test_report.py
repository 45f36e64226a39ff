"""The report: verdict first, nothing hidden, nothing fetched, nothing unescaped, nothing invented."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pennyweight.budget import Budget, Measurement, Terms
from pennyweight.errors import InvalidOutput, VerificationFailed
from pennyweight.flow import artifact, evidence
from pennyweight.methods.certification import certify
from pennyweight.report import heat, render, words, write
from pennyweight.report.plot import Axes, ticks

HOSTILE = "<script>alert('x')</script>&\"quoted\""
VOID = {"meta", "br", "wbr"}
LIMIT = Budget(metric="perplexity", at_most=0.02, unit="ratio")
FITS = Budget(metric="size", at_most=3e6, unit="bytes")


class Balance(HTMLParser):
    """Collects what is wrong with a page, and its text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.wrong, self.ids, self.attributes, self.tags, self.text = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)


def parsed(page):
    parser = Balance()
    parser.feed(page)
    parser.close()
    return parser


def seen(page):
    return re.sub(r"\s+", " ", " ".join(parsed(page).text))


def row(site, actual, *, intended=None, reason="", bits=4.25, error=1e-3, damping=0.01, factorisations=1):
    return {
        "site": site, "intended": actual if intended is None else intended, "actual": actual, "reason": reason,
        "bits": bits, "error": error, "damping": damping, "factorisations": factorisations,
    }  # fmt: skip


def ledger(*, fallback=False, blocks=3):
    rows = [row("model.embed", "dense float16", intended="dense", reason="no quantized tables", bits=0.0, error=0.0)]
    for block in range(blocks):
        for role in ("attn.q_proj", "attn.k_proj", "mlp.down_proj"):
            rows.append(row(f"model.layers.{block}.{role}", "gptq int4 g64 asym", error=10.0 ** (-2 - block)))
    if fallback:
        site = f"model.layers.{blocks - 1}.mlp.down_proj"
        rows[-1] = row(site, "rtn int4 g64 asym", intended="gptq int4 g64 asym", reason="no Cholesky factor")
    return rows


def measured(metric, x, unit):
    count = len(x)
    return Measurement(
        metric=metric, unit=unit, reference=np.full(count, 2.75) if metric == "perplexity" else np.zeros(count),
        compressed=np.asarray(x) + (2.75 if metric == "perplexity" else 0.0),
        windows=np.arange(count)[::-1].copy(), documents=np.arange(count) % 3, tokens=255, fingerprint="c" * 64,
    )  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Write an artifact's records, as a run does, around a certificate made from synthetic scores."""

    def make(
        mean=0.004, *, budget=LIMIT, count=200, population=1000, model="tiny", rows=None, source="9 tensors", **drop
    ):
        x = mean + 0.01 * np.sin(np.arange(count) * 1.7)
        x[count // 2] = 0.0831  # the worst window, in document (count // 2) % 3
        terms = Terms(
            margin=math.log1p(0.02), cap=0.2, pilot_mean=min(mean, 0.01), pilot_sd=0.008, alpha=0.04, tail_alpha=0.01,
            population=population, n_max=population,
        )  # fmt: skip
        loss = measured("perplexity", x, "nats per token")
        scope = f"the text {model} (order seed 5)"
        certificate = certify(loss, budget, terms, scope=scope, fingerprints={"code": "a" * 64, "model": "b" * 64})
        scores = {
            "perplexity": loss, "kl": measured("kl", np.abs(x), "nats per token"),
            "disagreement": measured("disagreement", np.full(count, 0.1), "share of tokens"),
        }  # fmt: skip
        claim = msgspec.to_builtins(certificate)
        rung = {
            "plan": "p", "bytes": 2_500_000, "chosen": True, "predicted_kl": 0.01, "bits": 4.5,
            "selection": {"perplexity": mean, "kl": 0.011}, "verdict": certificate.verdict, "holds": certificate.holds,
            "bound": certificate.bound, "estimate": certificate.estimate, "scored": count,
        }  # fmt: skip
        unreached = rung | {
            "bytes": 2_400_000, "chosen": False, "verdict": "not reached", "holds": False, "bound": None,
            "estimate": None, "scored": 0,
        }  # fmt: skip
        records = {
            "certificate": claim,
            "evidence": {"certification": evidence.to_values(scores), "selection": {}, "salt": "0 "},
            "ladder": [rung, unreached],
            "ledger": ledger() if rows is None else rows,
            "accounting": {
                "rows": [
                    {"name": "w", "action": "transformed", "reason": "int4", "bytes_before": 40, "bytes_after": 10},
                    {"name": "n", "action": "kept", "reason": "", "bytes_before": 4, "bytes_after": 4, "later": 1},
                ],
                "expected": ["w", "n"], "written": 14, "auxiliary": {},
            },
            "run": {
                "settings": {"seed": 0, "dtype": None}, "versions": {"torch": "2"}, "source": source, "code": "a" * 64,
            },
            "summary": {
                "holds": certificate.holds or budget is FITS, "verdict": certificate.verdict, "budget": claim["budget"],
                "statement": certificate.statement, "model": model, "source": source, "engine": "transformers",
                "bytes_before": 5_000_000, "bytes_16_bit": 10_000_000, "bytes_after": 2_500_000, "bits": 4.5,
                "perplexity_before": 15.64, "perplexity_after": 15.75, "confidence": 0.95, "kl": 0.012,
                "agreement": 0.9, "scored": count, "population": population, "rise": certificate.estimate,
                "bound": certificate.bound,
            },
            "timing": {"seconds": 369.4, "stages": {"certifying": 200.0}, "peak_memory": 1_286_623_232, "machine": "m"},
        }  # fmt: skip
        directory = tmp_path / "small"
        directory.mkdir()
        for name, value in records.items():
            value = drop.get(name, value)
            if value is not None:
                artifact.write_record(directory, f"{name}.json", value)
        return directory

    return make


def test_a_certified_artifact_says_so_first_with_bound_confidence_and_limit(make):
    directory = make()
    page = render(directory)
    bound = artifact.read_record(directory, "certificate.json")["bound"]
    text = seen(page).strip()
    assert text.startswith("✓ Certified With 95 % confidence, the compressed model’s perplexity rises by at most")
    heading = re.search(r"<h1>(.*?)</h1>", page).group(1)
    assert words.at_most(bound) in heading
    assert "The limit was 2\u202f%" in heading
    assert "banner good" in page


def test_the_statement_of_the_certificate_stands_in_full_before_any_section(make):
    directory = make()
    statement = artifact.read_record(directory, "certificate.json")["statement"]
    text = seen(render(directory))
    assert 0 < text.index(re.sub(r"\s+", " ", statement)) < text.index("2. What became of each block")


@pytest.mark.parametrize(
    ("changes", "verdict", "badge", "tone"),
    [
        ({"mean": 0.05}, "futile", "✗ Not certified", "bad"),
        ({"mean": 0.0185}, "exhausted", "✗ Not certified", "bad"),
        ({"population": 200}, "exact", "✓ Within the limit, measured exactly", "good"),
        ({"population": 200, "mean": 0.05}, "exact", "✗ Not within the limit, measured exactly", "bad"),
        ({"budget": FITS}, "measured", "◆ Measured, not certified", "open"),
        ({"budget": FITS, "population": 200}, "measured", "◆ Measured, not certified", "open"),
    ],
)
def test_every_verdict_is_told_in_words_and_colour(make, changes, verdict, badge, tone):
    directory = make(**changes)
    assert artifact.read_record(directory, "certificate.json")["verdict"] == verdict
    page = render(directory)
    assert seen(page).strip().startswith(badge)
    assert f"banner {tone}" in page
    parser = parsed(page)
    assert not parser.wrong
    assert not parser.open


def test_a_size_budget_makes_no_claim_and_shows_no_line_to_reach(make):
    text = seen(render(make(budget=FITS)))
    assert "The files fit: 2.5 MB of 3.0 MB allowed. No limit on the loss was set" in text
    assert "Certified bound" not in text
    assert "needed to certify" not in text
    assert "there is no line the evidence had to reach" in text


def test_when_no_candidate_passes_the_page_does_not_say_that_one_did(make):
    text = seen(render(make(mean=0.05)))
    assert "None passed: the safest one was written." in text
    assert "the last that passed" not in text


def test_an_exact_verdict_explains_that_every_window_was_scored(make):
    text = seen(render(make(population=200)))
    assert "Every window was scored." in text
    assert "Exact change" in text
    assert "≤" not in text


@pytest.mark.parametrize("blocks", [1, 3, 60])
def test_the_page_is_well_formed_and_its_ids_are_unique(make, blocks):
    parser = parsed(render(make(rows=ledger(fallback=True, blocks=blocks))))
    assert not parser.wrong
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))


def test_hostile_names_are_text_everywhere(make):
    rows = [
        row(f"model.layers.0.{HOSTILE}", HOSTILE, intended="gptq int4", reason=HOSTILE),
        row(HOSTILE, "dense", reason=HOSTILE),
    ]
    summary_free = {"timing": {"seconds": 1.0, "machine": HOSTILE, "stages": {HOSTILE: 1.0}}}
    page = render(make(model=HOSTILE, rows=rows, source=HOSTILE, **summary_free))
    parser = parsed(page)
    assert "script" not in parser.tags
    assert "<script" not in page.lower()
    assert not parser.wrong
    assert seen(page).count("<script>alert") > 5  # shown, as text


def test_nothing_is_fetched_and_nothing_runs(make):
    page = render(make())
    assert not re.search(r"https?://|url\((?!#)|@import", page)
    attributes = parsed(page).attributes
    names = {name for name, _ in attributes}
    assert not {"src", "href", "srcset", "action"} & names
    assert not any(name.startswith("on") for name in names)
    assert any(name == "content" and value.startswith("default-src 'none'") for name, value in attributes)


def test_pictures_have_a_title_and_a_description(make):
    page = render(make())
    images = re.findall(r'<svg [^>]*role="img".*?</svg>', page, flags=re.DOTALL)
    assert len(images) == 6  # bits, error, candidates, wealth, mean, spread
    for image in images:
        title, text = re.search(r'aria-labelledby="(\S+) (\S+)"', image).groups()
        assert f'id="{title}"' in image
        assert f'id="{text}"' in image


def test_fallbacks_come_before_every_other_row_of_the_ledger(make):
    page = render(make(rows=ledger(fallback=True)))
    text = seen(page[page.index("6. What was meant") :])
    assert "1 site of 10 got something else than the plan meant" in text
    places = [
        text.index(words)
        for words in ("no Cholesky factor", "no quantized tables", "compressed, by step", "All 10 sites")
    ]
    assert places == sorted(places)
    assert "No fallbacks" not in text


def test_a_site_kept_dense_as_planned_is_no_fallback(make):
    text = seen(render(make()))
    assert "No fallbacks. All 10 sites got what the plan meant" in text
    assert "Kept dense: 1 site" in text


def test_the_worst_window_and_its_document_lead_the_table(make):
    page = render(make())
    body = page[page.index("5. Where it became worst") :]
    first = re.search(r"<tbody><tr>(.*?)</tr>", body).group(1)
    # position 100 of 200 windows numbered backwards, in document 100 % 3
    assert re.findall(r">([^<>]+)<", first)[:3] == ["99", "1", "+0.0831"]


def test_the_evidence_names_the_window_where_the_line_was_reached(make):
    directory = make()
    certificate = artifact.read_record(directory, "certificate.json")
    first = int(re.search(r"first reaches the line after window (\d+)", seen(render(directory))).group(1))
    scores = evidence.from_values(artifact.read_record(directory, "evidence.json")["certification"])["perplexity"]
    terms, budget = msgspec.convert(certificate["terms"], Terms), msgspec.convert(certificate["budget"], Budget)
    ends = (first, first - 1)
    at, before = (certify(scores.take(np.arange(n)), budget, terms, scope="", fingerprints={}) for n in ends)
    assert at.verdict == "certified"
    assert before.verdict == "exhausted"


def test_accounts_that_add_up_are_reconciled(make):
    assert "✓ Reconciled. All 2 tensors" in seen(render(make()))


def test_accounts_with_a_tensor_missing_are_an_alarm(make):
    rows = [{"name": "w", "action": "kept", "reason": "", "bytes_before": 4, "bytes_after": 4}]
    text = seen(render(make(accounting={"rows": rows, "expected": ["w", "lost"], "written": 4, "auxiliary": {}})))
    assert "The accounts do not agree: 1 tensors without a row (lost)" in text
    assert "Reconciled" not in text


def test_missing_timing_is_said_and_not_invented(make):
    text = seen(render(make(timing=None)))
    assert "Time – not recorded in this artifact" in text
    assert "Peak memory – not recorded" in text
    assert "Time by stage" not in text


@pytest.mark.parametrize("name", ["evidence", "ladder", "ledger", "accounting", "run", "timing"])
def test_any_record_but_the_claim_may_be_missing(make, name):
    parser = parsed(render(make(**{name: None})))
    assert not parser.wrong


def test_values_missing_from_the_summary_are_dashes(make):
    text = seen(render(make(summary={"model": "tiny", "budget": msgspec.to_builtins(LIMIT)})))
    assert "Bits per weight –" in text
    assert "Perplexity – → –" in text
    assert "nan" not in text.lower()


def test_a_model_that_was_rounded_before_says_so_before_the_figures(make):
    text = seen(render(make(source="weights already rounded: 2 tensors Q4_1")))
    assert text.index("not against the full-precision model") < text.index("Size on disk")
    assert "larger than what was handed in" not in text  # 2.5 MB from 5 MB


def test_a_certificate_is_needed(tmp_path):
    with pytest.raises(VerificationFailed, match=r"certificate\.json"):
        render(tmp_path)


def test_an_edited_record_is_refused(make):
    directory = make()
    path = directory / "pennyweight" / "summary.json"
    path.write_bytes(path.read_bytes().replace(b'"bits":4.5', b'"bits": 1.5'))
    with pytest.raises(VerificationFailed, match="edited"):
        render(directory)


def test_writing_leaves_the_seal_whole(make, tmp_path):
    directory = make()
    artifact.seal(directory)
    before = artifact.check_seal(directory)
    assert write(directory) == directory / "report.html"
    assert artifact.check_seal(directory) == before
    elsewhere = write(directory, tmp_path / "page.html")
    assert elsewhere.read_text(encoding="utf-8") == render(directory)
    with pytest.raises(InvalidOutput, match="seal"):
        write(directory, directory / "other.html")
    with pytest.raises(InvalidOutput, match="cannot be written"):
        write(directory, Path(tmp_path / "nowhere" / "page.html"))


def test_blocks_and_roles_come_from_any_names():
    rows = [row(f"enc.h.{b}.{r}", "x") for b in (10, 2) for r in ("fc_in", "fc_out")]
    rows += [row(f"dec.2.experts.{e}.w1", "x") for e in (0, 1)] + [row("0.lone", "x"), row("head", "x")]
    found, outside = heat.grids(rows)
    assert [(g.stack, g.roles, g.blocks) for g in found] == [
        ("enc.h", ("fc_in", "fc_out"), (2, 10)),
        ("dec", ("experts.0.w1", "experts.1.w1"), (2,)),
        ("", ("lone",), (0,)),
    ]
    assert [r["site"] for r in outside] == ["head"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.size(98_362_432), "98.4 MB"),
        (words.size(999), "999 bytes"),
        (words.at_most(math.log1p(0.019001)), "1.91 %"),  # a bound is rounded towards the weaker claim
        (words.at_most(math.log1p(0.008)), "0.800 %"),
        (words.rise(math.log1p(-0.0123)), "−1.230 %"),
        (words.duration(369.36), "6 min 9 s"),
        (words.duration(None), "–"),
        (words.decimal(math.nan), "–"),
        (words.integer(1234567), "1 234 567"),
    ],
)
def test_numbers_are_written_for_people(written, expected):
    assert written.replace(words.THIN, " ") == expected


def test_ticks_are_round_and_inside():
    assert ticks(-0.3, 2.1, 5) == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert ticks(127.3, 134.5, 5) == pytest.approx([128, 130, 132, 134])
    numbers = " ".join(re.findall(r">([−0-9.]+)<", "".join(Axes((2.37, 2.53), (-0.01, 0.07)).frame("x", "y"))))
    assert numbers == "2.40 2.45 2.50 0.00 0.02 0.04 0.06"
