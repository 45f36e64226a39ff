"""The report: verdict first, nothing hidden, nothing fetched, nothing unescaped, nothing invented."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pennyweight import catalogue
from pennyweight.budget import Budget, Measurement, Opening
from pennyweight.cli import tables
from pennyweight.errors import InvalidOutput, VerificationFailed
from pennyweight.flow import artifact
from pennyweight.flow.certifying import record
from pennyweight.flow.certifying.claims import resolve
from pennyweight.flow.certifying.judge import Evidence, Judged, claims, judge_evidence, verdict_of
from pennyweight.flow.certifying.rules import Rules
from pennyweight.flow.delivery import outcome_of
from pennyweight.flow.profiling.values import (
    Calibration,
    Change,
    Group,
    Groups,
    Interval,
    Profile,
    Tail,
    TaskProfile,
    TextProfile,
)
from pennyweight.methods.probability import CalibrationBin, CalibrationError
from pennyweight.report import heat, render, words, write, write_profile
from pennyweight.report.plot import Axes, ticks
from pennyweight.report.shown import shown

HOSTILE = "<script>alert('x')</script>&\"quoted\""
VOID = {"meta", "br", "wbr"}
LIMIT = Budget(metric="perplexity", at_most=0.02, unit="ratio")
KL = Budget.lose("kl 0.02")
ACCURACY = Budget.lose("accuracy:some/quiz.jsonl 2pt")
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


def measured(metric, x, unit, *, offset=0.0, documents=3):
    count = len(x)
    return Measurement(
        metric=metric, unit=unit, reference=np.full(count, offset), compressed=np.asarray(x) + offset,
        drawn=np.arange(count)[::-1].copy(), documents=np.arange(count) % documents, tokens=255, fingerprint="c" * 64,
    )  # fmt: skip


def text_scores(x, documents=3):
    return {
        "perplexity": measured("perplexity", x, "nats per token", offset=2.75, documents=documents),
        "kl": measured("kl", np.abs(x), "nats per token"),
        "disagreement": measured("disagreement", np.clip(0.02 + 0.2 * np.abs(x), 0, 1), "share of positions"),
    }


def waves(mean, count):
    return mean + 0.01 * np.sin(np.arange(count) * 1.7)


def the_text(mean, count, population, *, model="tiny", labels=(), documents=3):
    x = waves(mean, count)
    x[count // 2] = 0.0831  # the worst window, in document (count // 2) % 3
    return Evidence(
        on="", counted="windows", words=f"the text {model} ({population} windows", size=population, discrete=False,
        fingerprint="c" * 64, documents=(), labels=tuple(labels), pilot=text_scores(waves(min(mean, 0.01), 32)),
        scored=text_scores(x, documents),
    )  # fmt: skip


def the_quiz(count, population, *, lost=2, on="some/quiz.jsonl"):
    x = np.zeros(count)
    x[:lost], x[-1:] = 1.0, -1.0
    scores = {"accuracy": measured("accuracy", x, "share of questions", offset=1.0)}
    return Evidence(
        on=on, counted="questions", words=f"quiz ({population} questions", size=population, discrete=True,
        fingerprint="d" * 64, documents=(), labels=(), pilot=None, scored=scores,
    )  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Write an artifact's records, as a run does, around a certificate made from synthetic scores."""

    def make(
        mean=0.004,
        *,
        budgets=(LIMIT,),
        count=200,
        population=1000,
        model="tiny",
        rows=None,
        source="9 tensors",
        labels=(),
        quiz=None,
        scope="corpus",
        engine="planned-mixture",
        number=1,
        bare=False,
        calibrated=None,
        documents=3,
        **drop,
    ):
        parts = (the_text(mean, count, population, model=model, labels=labels, documents=documents),)
        parts += (quiz,) if quiz is not None else ()
        rules = Rules(
            engine=catalogue.find(engine, "certification"), scope=scope, groups="language" if labels else None,
            opening=Opening(number=number, alpha=0.05 / number**2, spent=0.05 if number == 1 else 0.0625),
            noise_floor={"perplexity": 1e-6, "kl": 2e-7},
        )  # fmt: skip
        asked = resolve(budgets)
        certificate = judge_evidence(asked, parts, rules, {"code": "a" * 64, "model": "b" * 64}, "w" * 64)
        first = certificate.claims[0]
        rung = {
            "plan": "p", "bytes": 2_500_000, "chosen": True, "predicted_kl": 0.01, "bits": 4.5,
            "selection": {"perplexity": mean, "kl": 0.011, "disagreement": 0.02}, "verdict": verdict_of(certificate),
            "holds": certificate.holds, "bound": first.bound, "estimate": first.estimate, "scored": count,
        }  # fmt: skip
        unreached = rung | {
            "bytes": 2_400_000, "chosen": False, "verdict": "not reached", "holds": False, "bound": None,
            "estimate": None, "scored": 0,
        }  # fmt: skip
        records = {
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
                **claims(certificate, parts[0].scored), "budgets": [asdict(one.budget) for one in asked],
                "model": model, "source": source, "engine": "transformers",
                "bytes_before": 5_000_000, "bytes_16_bit": 10_000_000, "bytes_after": 2_500_000, "bits": 4.5,
                **({"compressed": f"{model}-int4"} if bare else {}),
            },
            "timing": {"seconds": 369.4, "stages": {"certifying": 200.0}, "peak_memory": 1_286_623_232, "machine": "m"},
            "calibration": None if calibrated is None else msgspec.to_builtins(calibrated),
        }  # fmt: skip
        directory = tmp_path / "small"
        directory.mkdir()
        if bare:
            records |= {"ladder": None, "ledger": None, "accounting": None}
        else:
            (directory / "config.json").write_text("{}")
        record.write(directory, Judged(certificate, parts), rules, asked, "w" * 64)
        for name, value in records.items():
            value = drop.get(name, value)
            if value is not None:
                artifact.write_record(directory, f"{name}.json", value)
        for name in ("evidence", "certificate"):
            if name in drop:
                (directory / "pennyweight" / f"{name}.json").unlink()
        return directory

    return make


def test_a_certified_artifact_says_so_first_with_bound_confidence_and_limit(make):
    directory = make()
    page = render(directory)
    bound = artifact.read_record(directory, "certificate.json")["claims"][0]["bound"]
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
        ({"budgets": (FITS,)}, "measured", "◆ Measured, not certified", "open"),
        ({"budgets": (FITS,), "population": 200}, "measured", "◆ Measured, not certified", "open"),
    ],
)
def test_every_verdict_is_told_in_words_and_colour(make, changes, verdict, badge, tone):
    directory = make(**changes)
    assert artifact.read_record(directory, "certificate.json")["claims"][0]["verdict"] == verdict
    page = render(directory)
    assert seen(page).strip().startswith(badge)
    assert f"banner {tone}" in page
    parser = parsed(page)
    assert not parser.wrong
    assert not parser.open


def test_a_size_budget_makes_no_claim_and_shows_no_line_to_reach(make):
    text = seen(render(make(budgets=(FITS,))))
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
    first = int(re.search(r"first reaches the line after window (\d+)", seen(render(directory))).group(1))
    asked, (part,), rules, weights = record.read_evidence(directory)

    def verdict_after(count):
        scored = {name: m.take(np.arange(count)) for name, m in part.scored.items()}
        return verdict_of(judge_evidence(asked, [replace(part, scored=scored)], rules, {}, weights))

    assert verdict_after(first) == "certified"
    assert verdict_after(first - 1) == "exhausted"


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
    text = seen(render(make(summary={"model": "tiny"})))
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


LANGUAGES = [("en", "de", "<b>x</b>")[min(i % 5, 2)] for i in range(1000)]


def test_several_limits_that_hold_open_the_gate_in_one_sentence(make):
    directory = make(budgets=(LIMIT, KL, ACCURACY), quiz=the_quiz(600, 600))
    page = render(directory)
    text = seen(page).replace(words.THIN, " ")
    assert text.strip().startswith("✓ All 3 limits certified With 95 % confidence, the compressed model stays within")
    assert "perplexity rises by at most 2 %" in text
    assert "accuracy falls by at most 2 points (quiz.jsonl)" in text
    assert "The gate is open" in text
    assert len(set(re.findall(r'<svg [^>]*aria-labelledby="(wealth\d)-title', page))) == 3


def test_one_limit_that_fails_closes_the_gate_and_is_named(make):
    directory = make(budgets=(LIMIT, KL, ACCURACY), quiz=the_quiz(600, 600, lost=30))
    page = render(directory)
    text = seen(page).replace(words.THIN, " ")
    assert text.strip().startswith(
        "✗ 1 of 3 limits not certified 1 of 3 limits is not certified: accuracy falls by 4.833"
    )
    assert "4.833 points on 600 questions of quiz.jsonl, and the limit was 2 points" in text
    assert "The gate is closed" in text
    assert "banner bad" in page


def test_the_table_of_claims_shows_what_the_certificate_says(make):
    directory = make(budgets=(LIMIT, KL, ACCURACY), quiz=the_quiz(300, 600))
    page = render(directory)
    rows = re.findall(r"<tr>(.*?)</tr>", page[: page.index("</table>")])[1:]
    cells = [
        [re.sub("<.*?>", "", c).replace(words.THIN, " ") for c in re.findall(r"<t[hd].*?>(.*?)</t", r)] for r in rows
    ]
    stated = record.read_certificate(directory).claims
    assert [row[0] for row in cells] == [
        "perplexity: at most 2 %", "kl: at most 0.02 nats per token", "accuracy on quiz.jsonl: at most 2 points"
    ]  # fmt: skip
    for row, claim in zip(cells, stated, strict=True):
        number = float(row[2].split()[1])
        bound = math.expm1(claim.bound) * 100 if claim.metric == "perplexity" else claim.bound
        bound *= 100 if claim.metric == "accuracy" else 1
        assert bound <= number < bound * 1.02
        assert row[3].startswith(f"{claim.scored} of ")
        assert row[4] == f"{'✓' if claim.holds else '✗'} {claim.verdict}"


@pytest.mark.parametrize(("mean", "wider"), [(0.015, False), (0.0174, True)])
def test_a_bound_above_its_certified_limit_is_explained(make, mean, wider):
    """Of several bounds each is wider than the test of its limit alone."""
    directory = make(mean=mean, budgets=(LIMIT, KL))
    certificate = record.read_certificate(directory)
    assert certificate.holds
    assert any(claim.bound > claim.terms.margin for claim in certificate.claims) == wider
    assert ("the gate needs no correction" in seen(render(directory))) == wider


def test_claims_and_groups_share_one_axis_with_the_limit_at_one(make):
    directory = make(budgets=(LIMIT, KL), labels=LANGUAGES)
    page = render(directory)
    image = re.search(r'<svg [^>]*aria-labelledby="forest-title.*?</svg>', page, re.DOTALL).group(0)
    squares = [float(x) + 5 for x in re.findall(r'<rect x="([\d.]+)"', image)]
    axis = [
        (float(x), float(v.replace("−", "-")))
        for x, v in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">(−?[\d.]+)<', image)
    ]
    (x0, v0), (x1, v1) = axis[0], axis[-1]
    scale = (x1 - x0) / (v1 - v0)
    for square, claim in zip(squares, record.read_certificate(directory).claims, strict=True):
        assert (square - x0) / scale + v0 == pytest.approx(claim.estimate / claim.terms.margin, abs=0.01)
    limit = float(re.search(r'<line x1="([\d.]+)"[^>]*class="limit"', image).group(1))
    assert (limit - x0) / scale + v0 == pytest.approx(1, abs=0.01)
    assert image.count("<circle") == 6  # three groups under each of two claims


def test_the_worst_group_is_the_one_whose_bound_is_largest_alone(make):
    directory = make(labels=LANGUAGES)
    claim = record.read_certificate(directory).claims[0]
    worst = max(claim.slices, key=lambda part: part.alone)
    text = seen(render(directory))
    bound = words.at_most(worst.alone).replace(words.THIN, " ")
    told = text[text.index("whichever group is the worst") :]
    assert told.startswith(f"whichever group is the worst, its mean is at most {bound}, the bound of")
    assert told[: told.index("windows)")].endswith(f"of {worst.group} ({worst.scored} of {worst.population} ")
    assert "<b>x</b>" in text  # a hostile name of a group, as text


def test_a_group_without_a_unit_says_so(make):
    labels = ["en"] * 900 + ["xx"] * 100
    text = seen(render(make(labels=labels, count=200)))
    assert "xx 0 of 100 none scored" in text


def test_a_certificate_without_a_model_shows_only_what_it_has(make):
    page = render(make(bare=True))
    text = seen(page)
    assert "tiny → tiny-int4" in re.sub(r"\s+", " ", text)
    for absent in ("Bits per weight", "ledger", "What became of each block", "Load it", "Peak memory"):
        assert absent not in text
    assert "pennyweight certify tiny tiny-int4" in text
    assert not parsed(page).wrong


def test_a_certificate_of_questions_alone_has_no_perplexity(make):
    directory = make(budgets=(ACCURACY,), quiz=the_quiz(600, 600), bare=True)
    stored = record.read_certificate(directory)
    only = replace(stored, claims=tuple(claim for claim in stored.claims if claim.metric == "accuracy"))
    artifact.write_record(directory, "certificate.json", only)
    summary = artifact.read_record(directory, "summary.json")
    kept = {k: v for k, v in summary.items() if not k.startswith("perplexity") and k not in ("rise", "kl", "agreement")}
    artifact.write_record(directory, "summary.json", kept)
    page = render(directory)
    text = seen(page)
    assert "the compressed model’s accuracy falls by" in text
    assert "Perplexity" not in re.sub(r"5\. .*", "", text)[:3000]
    assert not parsed(page).wrong


@pytest.mark.parametrize("engine", ["planned-mixture", "predictable-plug-in"])
def test_engines_that_bet_show_their_path(make, engine):
    page = render(make(budgets=(KL,), engine=engine, source="x"))
    assert "wealth0-title" in page
    assert "upper bound at that time" in page


def test_an_engine_that_does_not_bet_shows_the_bound_alone(make):
    directory = make(engine="clustered-t", scope="asymptotic", population=200, documents=20)
    page = render(directory)
    text = seen(page)
    assert "wealth0-title" not in page
    assert "mean0-title" in page
    assert "clustered-t does not bet" in text
    assert "on average over the source that this text comes from, approximately. The limit was" in text
    assert "hold together with 95 % confidence, approximately" in text


def test_the_opening_and_the_noise_floor_are_told(make):
    text = seen(render(make(number=2))).replace(words.THIN, " ")
    assert "opening number 2 of its held-out data, and its claim has an error level of 1.25 %" in text
    assert "with all earlier ones, the chance that the gate was ever opened wrongly is at most 6.25 %" in text
    assert "differs from itself by 0.00010 % (perplexity)" in text


def test_one_claim_has_the_level_for_whatever_it_says(make):
    text = seen(render(make())).replace(words.THIN, " ")
    assert "its claim has an error level of 5 %: that is the chance that it is false, at most" in text


@pytest.mark.parametrize("changes", [{"budgets": (LIMIT, KL)}, {"labels": ["a", "b"] * 500}])
def test_gate_bounds_and_single_limits_are_not_said_to_share_a_level(make, changes):
    text = seen(render(make(**changes))).replace(words.THIN, " ")
    assert "share an error level" not in text
    assert "any of them is false" not in text
    assert "5 %: that is the chance that the gate is open wrongly, at most, and separately the chance that any" in text
    alone = "A single limit marked certified while the gate is closed has that level to itself."
    assert (alone in text) is ("budgets" in changes)
    assert ("Groups are a third statement" in text) is ("labels" in changes)


@pytest.mark.parametrize("budgets", [(LIMIT,), (LIMIT, KL)])
def test_the_banner_does_not_drop_the_cap(make, budgets):
    """A few very bad windows count no more than the cap, and whoever reads one sentence has to know it."""
    directory = make(budgets=budgets)
    certificate = artifact.read_record(directory, "certificate.json")
    assert certificate["holds"]
    tail = words.rounded_up(100 * max(claim["tail_bound"] for claim in certificate["claims"]))
    heading = re.search(r"<h1>(.*?)</h1>", render(directory)).group(1)
    assert f"each window counted up to a cap that at most {tail}{words.THIN}% exceed" in heading
    assert seen(render(directory)).count("(capped)") == len(budgets)


def test_no_cap_is_told_where_there_is_none(make):
    page = render(make(engine="clustered-t", scope="asymptotic", population=200, documents=20))
    assert "up to a cap" not in re.search(r"<h1>(.*?)</h1>", page).group(1)
    assert "(capped)" not in page


@pytest.mark.parametrize(("mean", "told"), [(0.004, "(capped)"), (0.05, "NOT certified: looks above the limit")])
def test_the_table_on_a_terminal_says_what_a_number_is(make, capsys, monkeypatch, mean, told):
    monkeypatch.setenv("COLUMNS", "160")
    directory = make(mean)
    found = outcome_of(directory)
    tables.certified(replace(found, summary={**found.summary, "compressed": "small"}), directory / "page.html")
    table = capsys.readouterr().out
    assert told in table
    assert "it loses more" not in table  # which nobody knows of a run that was stopped


def test_long_evidence_is_drawn_with_few_points(make):
    page = render(make(count=3000, population=9000))
    image = re.search(r'aria-labelledby="wealth0-title.*?</svg>', page, re.DOTALL).group(0)
    points = re.search(r'points="([^"]*)" class="series"', image).group(1)
    assert len(points.split()) < 700


def calibration(**changes):
    before, after = ([0.3, 0.7, 0.9], 0.0), ([0.3, 0.7, 0.9], 0.08)

    def errors(side):
        confidences, gap = side
        curve = tuple(
            CalibrationBin(confidence=q, accuracy=q - gap, count=100, low=q - gap - 0.05, high=q - gap + 0.05)
            for q in confidences
        )
        return CalibrationError(
            plug_in=gap + 0.01, debiased=gap, squared=gap**2, ks=gap, count=300, curve=curve, confidence=0.95, notes=()
        )

    values = {
        "windows": 12, "fitted_windows": 4, "positions": 300, "before": errors(before), "after": errors(after),
        "repaired": errors(before), "brier": 0.0123, "temperature": 1.0875, "loss_before": 2.75, "loss_after": 2.8,
        "brier_interval": Interval(low=0.01, high=0.015, confidence=0.95, rule="clustered-t", exact=False),
        "loss_repaired": 2.78,
    }  # fmt: skip
    return Calibration(**(values | changes))


def profiled(**changes):
    interval = Interval(low=0.001, high=0.02, confidence=0.95, rule="tango", exact=False)
    change = Change(
        metric="perplexity", unit="nats per token", percent=True, before=2.75, after=2.76, degradation=0.01,
        standard_error=0.002, upper_approximate=0.014, interval=interval, complete=False, bound=0.015, cap=0.1,
        above_cap=1, largest=0.09, largest_unit=17, noise=1e-6,
    )  # fmt: skip
    drop = replace(change, metric="accuracy", unit="share of questions", before=0.4, after=0.41, interval=None)
    members = tuple(
        Group(
            name=name, scored=n, units=200, before=None, after=None, degradation=x, bound=x + 0.02, alone=x + 0.01,
            few=n < 30,
        )
        for name, n, x in (("de", 20, 0.02), (HOSTILE, 80, 0.01))
    )  # fmt: skip
    groups = Groups(
        field="language", metric="perplexity", unit="nats per token", percent=True, groups=members, worst="de",
        worst_bound=0.03, confidence=0.95, rule="planned-mixture", scope="corpus", cap=0.1, spread=0.01,
    )  # fmt: skip
    tail = Tail(metric="perplexity", unit="nats per token", percent=True, share=0.05, estimate=0.05, bound=None)
    text = TextProfile(
        on="wiki.txt", source=HOSTILE, fingerprint="c" * 64, windows=100, of=400, length=256, documents=20,
        metrics=(change,), groups=(groups,), tails=(tail,), calibration=calibration(**changes), noise_floor={},
    )  # fmt: skip
    task = TaskProfile(
        on="some/quiz.jsonl", source="quiz.jsonl", fingerprint="d" * 64, questions=200, of=200, clusters=200,
        metric="accuracy", accuracy_before=0.6, accuracy_after=0.59, drop=0.01, drop_interval=interval, lost=7,
        lost_interval=interval, gained=5, gained_interval=interval, mcnemar=0.387, retention=0.94,
        retention_bound=0.9, repair=0.0625, metrics=(drop,), groups=(), margins=None, notes=("twins removed",),
    )  # fmt: skip
    return Profile(
        reference="tiny", compressed="tiny-int4", bytes_before=10**7, bytes_after=3 * 10**6, confidence=0.95,
        texts=(text,), tasks=(task,),
    )  # fmt: skip


def test_a_calibration_beside_a_certificate_shows_the_reliability_curve(make):
    page = render(make(calibrated=calibration()))
    assert "treat positions as independent, which neighbours are not, so they are too short" in seen(page)
    image = re.search(r'<svg [^>]*aria-labelledby="reliable-title.*?</svg>', page, re.DOTALL).group(0)
    assert image.count('class="dot after"') == 3
    assert "after: held 70.0" in image
    text = seen(page).replace(words.THIN, " ")
    assert "after 8.00 % 9.00 % 8.00 % 2.8000" in text
    assert "Dividing the compressed model’s logits by 1.0875" in text


def test_no_reliability_where_none_was_measured(make):
    assert "Are its probabilities" not in seen(render(make()))


def test_a_repair_that_was_not_possible_is_not_drawn(make):
    page = render(make(calibrated=calibration(repaired=None, temperature=None, loss_repaired=None)))
    assert "at temperature" not in seen(page)


def test_what_was_measured_is_a_page_of_its_own(tmp_path):
    out = write_profile(profiled(), tmp_path / "measured.html")
    page = out.read_text(encoding="utf-8")
    parser, text = parsed(page), seen(page).replace(words.THIN, " ")
    assert not parser.wrong
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    assert "script" not in parser.tags
    assert (
        "Measured, not certified Perplexity rises by 1.005 % on wiki.txt; accuracy falls by 1.00 point on quiz" in text
    )
    assert "right → wrong 7 3.50 %" in text
    assert "wrong → right 5 2.50 %" in text
    assert "perplexity 15.643 15.800 +1.005 % +0.1001 % to +2.020 % (tango, approximate) ≤ 1.52 %" in text
    assert "its mean is at most 3.05 %; that bound is the one of de" in text
    assert "few units" in text
    assert re.findall(r"Certified|certified", text) == ["certified"]  # only to say that it is not


def test_a_profile_that_cannot_be_written(tmp_path):
    with pytest.raises(InvalidOutput, match="cannot be written"):
        write_profile(profiled(), tmp_path / "nowhere" / "page.html")


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("accuracy", 0.0123, "accuracy falls by 1.230 points"),
        ("accuracy", -0.01, "accuracy rises by 1.000 points"),
        ("perplexity", -0.01, "perplexity falls by 0.9950 %"),
        ("disagreement", 0.031, "3.100 % of next-token choices differ"),
        ("kl", 0.012, "the Kullback-Leibler divergence is 0.01200 nats per token"),
        ("choice_brier", -0.01, "the Brier score falls by 0.01000 score per question"),
        ("made-up", 0.5, "made-up is +0.5000 units"),
    ],
)
def test_changes_are_told_in_the_words_of_the_metric(metric, value, expected):
    assert shown(metric, "units").changed(value).replace(words.THIN, " ") == expected


def test_bounds_are_rounded_up_and_never_below():
    assert shown("kl", "nats").at_most(0.012301) == f"0.0124{words.THIN}nats per token"
    assert shown("perplexity", "nats").bounded(-0.01).startswith("perplexity falls by at least 0.99")
