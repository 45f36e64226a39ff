"""What papers say of two methods side by side, and what our measurements say: the page docs/concepts/orderings.md.

    python benchmarks/orderings.py

Nothing is measured here: every claim names two rows of a file in benchmarks/results/, and the page says whether the
first lies below the second. A claim that does not hold has a reason; one that holds has none (tests/unit/
test_orderings.py), so that results made again are read again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "concepts" / "orderings.md"
NEAR = 1.15  # "close to": at most this times as much
Rows = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One method below another.

    Args:
        says: what is said of them.
        file: of results, without its ending.
        less: row that should lie lower.
        more: the other one.
        near: the first may lie above the second, by `NEAR`.
        why: it does not hold here, where it does not.
    """

    says: str
    file: str
    less: str
    more: str
    near: bool = False
    why: str = ""

    @property
    def measured(self) -> bool:
        """Whether the file has both rows."""
        return {self.less, self.more} <= rows_of(self.file).keys()

    @property
    def values(self) -> tuple[float, float]:
        """Of both rows.

        Raises:
            KeyError: the file has no such row.
        """
        rows = rows_of(self.file)
        return rows[self.less], rows[self.more]

    @property
    def holds(self) -> bool:
        """Whether the measurements say so too."""
        less, more = self.values
        return less <= more * (NEAR if self.near else 1)


def recovery(row: Mapping[str, Any]) -> str:
    """Such as `gptq int2 g64 asym + block_wise`."""
    return " + ".join([row["step"], *row["recovery"]])


KEYS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {  # the column that counts, and a row's name
    "shelf": ("kl", lambda row: row["step"]),
    "activations": ("kl", lambda row: row["way"]),
    "recovery": ("kl", recovery),
    "recovery_small": ("kl", recovery),
    "shelf_modules": ("change", lambda row: f"{row['network']}: {row['step']}"),
    "shelf_experts": ("change", lambda row: f"{row['text']}{', by gates' if row['gates'] else ''}: {row['step']}"),
    "shelf_scans": ("change", lambda row: f"int{row['bits']}, {row['scale']}"),
    "peers": ("kl", lambda row: f"{row['tool']} at {row.get('width')} bits"),
}


@cache
def rows_of(file: str) -> Rows:
    """What counts of every row, by its name; rewrites have a column a way to round, GGUF types a row an order."""
    rows = json.loads((HERE / "results" / f"{file}.json").read_text())["rows"]
    if file == "rewrites":
        ways = ("w4", "w8a8", "w8a8_static", "w4a4", "w4a4_r4")
        return {f"{row['rewrite']}, {way}": row[way] for row in rows for way in ways}
    if file == "gguf_types":
        orders = dict[str, list[float]]()
        for row in rows:
            orders.setdefault(f"{row['type']} by {row['by']}", []).append(row["perplexity"])
        return {name: fmean(found) for name, found in orders.items()}
    column, name = KEYS[file]
    return {name(row): row[column] for row in rows if column in row and "failed" not in row}


NETWORKS = (  # file of results, beginning of a row's name, groups, and what the network is called
    ("shelf", "", "g64", "SmolLM2"),
    ("shelf_modules", "minilm: ", "g32", "MiniLM"),
    ("shelf_modules", "resnet: ", "g32", "a ResNet"),
    ("shelf_modules", "vit: ", "g32", "a ViT"),
    ("shelf_modules", "mixtral: ", "g32", "a Mixtral"),
    ("shelf_modules", "mamba: ", "g32", "a Mamba"),
)


def everywhere(
    says: str, less: str, more: str, kind: str = "asym", bits: Sequence[int] = (4, 3, 2),
    why: Mapping[tuple[str, int], str] | None = None,
) -> list[Claim]:  # fmt: skip
    """The same claim about two quantizers on every network at some widths; reasons by network and width."""
    return [
        Claim(
            says=f"{says}, {width} bits, {name}", file=file, less=f"{place}{less} int{width} {group} {kind}",
            more=f"{place}{more} int{width} {group} {kind}", why=(why or {}).get((name, width), ""),
        )
        for width in bits for file, place, group, name in NETWORKS
    ]  # fmt: skip


CLIPPED = (
    "clipping lowers the error of the weights and turns it one way: what is clipped moves towards zero, and inputs "
    "behind a ReLU or a GELU are mostly of one sign, so these errors add up where those of rounding cancel; "
    "`awq_clip` and `gptq` look at products of inputs and are not misled"
)
LITTLE = "the two are within a twentieth, and one expert sees few of the windows"
CLIPPING = {
    **{(name, width): CLIPPED for name in ("a ResNet", "a ViT") for width in (4, 3)},
    ("a Mixtral", 3): LITTLE,
}
FOLDED = (
    "the gains of norms, without whose folding nothing can be turned, cost eleven of the fourteen points by themselves "
    "(docs/concepts/rewrites.md); the networks of the paper are larger"
)
SEARCHED = (
    "free scales are searched here, with inputs weighted, where the paper takes the largest weight over six: there is "
    "more to lose by moving one to a power of two, which may be a factor of 1.41 away"
)
ALIKE = (
    "within a twentieth of each other: channels of a residual stream of 128 matter much alike; the paper's gains "
    "are on vision transformers whose activations are rounded too"
)
WRITTEN = (
    "a Mixtral of a million weights trained for 200 steps writes badly and repeats itself, and uses its experts less "
    "evenly over that than over text; the paper's models have billions"
)
SOURCES: Mapping[str, Sequence[Claim]] = {
    "Range search, against the range from minimum to maximum": [
        Claim(says="the search helps, 4 bits, whole rows, SmolLM2", file="shelf",
              less="round_to_nearest int4 row sym", more="round_to_nearest(search=False) int4 row sym"),
        *everywhere("the search helps", "round_to_nearest", "round_to_nearest(search=False)", bits=(4, 3),
                    why=CLIPPING),
        *everywhere("a search is below a fixed percentile", "round_to_nearest", "percentile", bits=(4, 3),
                    why=CLIPPING),
    ],
    "GPTQ, arXiv:2210.17323": [
        *everywhere("below rounding to nearest", "gptq", "round_to_nearest"),
        *(Claim(says=f"activation order helps in groups of 64, {width} bits, SmolLM2", file="shelf",
                less=f"gptq int{width} g64 asym", more=f"gptq(order='none') int{width} g64 asym")
          for width in (4, 3, 2)),
    ],
    "QuantEase, arXiv:2309.01885": everywhere("below GPTQ", "coordinate_descent", "gptq"),
    "AdaQuant, arXiv:2006.10518": everywhere("below rounding to nearest", "adaquant", "round_to_nearest"),
    "AWQ, arXiv:2306.00978": [
        *everywhere("its clipping is below rounding to nearest", "awq_clip", "round_to_nearest"),
        *everywhere("GPTQ is below its clipping", "gptq", "awq_clip", bits=(2,)),
    ],
    "decoupleQ, arXiv:2404.12759": [
        *everywhere("below GPTQ", "decoupleq", "gptq", "affine", bits=(3, 2)),
        Claim(says="GPTQ close to it, 4 bits, SmolLM2", file="shelf", near=True,
              less="gptq int4 g64 affine", more="decoupleq int4 g64 affine"),
    ],
    "HQQ, 2023": [
        *(Claim(says=f"a range search has the lower error, {width} bits, SmolLM2", file="shelf",
                less=f"round_to_nearest int{width} g64 affine", more=f"hqq int{width} g64 affine")
          for width in (3, 2)),
    ],
    "ZeroQuant-FP, arXiv:2307.09782": [
        Claim(says="FP4 near INT4, groups of 64, SmolLM2", file="shelf", near=True,
              less="gptq fp4 e2m1 g64", more="gptq int4 g64 asym"),
        Claim(says="its scales, powers of two apart, close to free ones, SmolLM2", file="shelf", near=True,
              less="zeroquant_fp fp4 e2m1 g64", more="gptq fp4 e2m1 g64", why=SEARCHED),
        Claim(says="FP8 activations below INT8, a token", file="activations", less="fp8 dynamic", more="w8a8 dynamic"),
    ],
    "GPTVQ, arXiv:2402.15319": [
        Claim(says="below plain rounding to the same codebook's size, SmolLM2", file="shelf",
              less="gptvq vector2 64 g64", more="round_to_nearest vector2 64 g64"),
        Claim(says="below GPTQ at as many bits, 3 bits, SmolLM2", file="shelf",
              less="gptvq vector2 64 g64", more="gptq int3 g64 asym"),
        *(Claim(says=f"below plain rounding to the same codebook's size, 2 bits, {name}", file=file,
                less=f"{place}gptvq vector2 16 g32", more=f"{place}round_to_nearest vector2 16 g32")
          for file, place, _, name in NETWORKS[1:]),
        *(Claim(says=f"below GPTQ at as many bits, 2 bits, {name}", file=file,
                less=f"{place}gptvq vector2 16 g32", more=f"{place}gptq int2 g32 asym")
          for file, place, _, name in NETWORKS[1:]),
    ],
    "FlexQ, arXiv:2508.04405": [
        Claim(says="8 bits for down projections help W6A6", file="activations", less="w6a6, down a8", more="w6a6"),
        Claim(says="W6A6 below W4A4", file="activations", less="w6a6", more="w4a4"),
    ],
    "QServe (QoQ), arXiv:2405.04532": [
        Claim(says="two levels close to groups with real scales, W4A8", file="activations", near=True,
              less="w4a8 progressive", more="w4a8"),
        Claim(says="groups below whole rows, W4A8", file="activations", less="w4a8 progressive", more="w4a8 rows"),
    ],
    "EfficientQAT, arXiv:2407.11062": [
        *(Claim(says=f"block-wise training below GPTQ, {width} bits, a small Llama", file="recovery_small",
                less=f"gptq int{width} g32 asym + block_wise", more=f"gptq int{width} g32 asym")
          for width in (4, 3, 2)),
        *(Claim(says=f"both phases below {one.replace('_', '-')} alone, {width} bits, a small Llama",
                file="recovery_small", less=f"gptq int{width} g32 asym + block_wise + end_to_end",
                more=f"gptq int{width} g32 asym + {one}")
          for width in (3, 2) for one in ("block_wise", "end_to_end")),
        *(Claim(says=f"scales trained end to end below what they start from, {width} bits", file="recovery",
                less=f"coordinate_descent int{width} g64 asym + end_to_end",
                more=f"coordinate_descent int{width} g64 asym") for width in (4, 3, 2)),
    ],
    "GPTAQ and Qronos, arXiv:2504.02692 and 2505.11695": [
        *(Claim(says=f"aiming at the reference's outputs below GPTQ, {label}, a small Llama", file="recovery_small",
                less=f"gptq {label} + corrected_target", more=f"gptq {label}")
          for label in ("int4 g32 asym", "int3 g32 asym", "int2 g32 asym")),
    ],
    "MoEQuant, arXiv:2505.03804": [
        *(Claim(says=f"tokens counted by their gates below all alike, {width} bits, a Mixtral", file="shelf_experts",
                less=f"text, by gates: gptq int{width} g32 asym", more=f"text: gptq int{width} g32 asym")
          for width in (4, 3, 2)),
        *(Claim(says=f"text that the model writes itself below other text, {width} bits, a Mixtral",
                file="shelf_experts", less=f"written by the model: gptq int{width} g32 asym",
                more=f"text: gptq int{width} g32 asym", why=WRITTEN) for width in (4, 3, 2)),
    ],
    "Quamba2, arXiv:2503.22879": [
        *(Claim(says=f"B and C with a scale a state group below one a tensor, int{width}, a Mamba2", file="shelf_scans",
                less=f"int{width}, a state group", more=f"int{width}, a tensor") for width in (8, 6, 4)),
        *(Claim(says=f"x with scales of clusters below one a tensor, int{width}, a Mamba2", file="shelf_scans",
                less=f"int{width}, a cluster, a state group", more=f"int{width}, a state group")
          for width in (8, 6, 4)),
    ],
    "APHQ-ViT, arXiv:2504.02508": [
        *(Claim(says=f"its importance below plain block-wise training, {width} bits, a small Llama",
                file="recovery_small", less=f"gptq int{width} g32 asym + average_hessian",
                more=f"gptq int{width} g32 asym + block_wise", why=ALIKE) for width in (3, 2)),
    ],
    "Tequila, arXiv:2509.23809": [
        Claim(says="below training without its bias, ternary, a small Llama", file="recovery_small",
              less="gptq ternary g32 + tequila", more="gptq ternary g32 + end_to_end"),
    ],
    "BinaryDM, arXiv:2404.05662": [
        Claim(says="projections on principal directions below plain block-wise training, two signs, a small Llama",
              file="recovery_small",
              less="gptq binary2 g32 + low_rank_mimicking", more="gptq binary2 g32 + block_wise"),
    ],
    "Quantization Robustness to Input Degradations, arXiv:2508.19600": [
        Claim(says="degraded calibration brings nothing", file="activations", near=True,
              less="w8a8 static range", more="w8a8 static range, noisy text"),
    ],
    "SmoothQuant, arXiv:2211.10438": [
        Claim(says="below plain W8A8, one static scale", file="activations",
              less="w8a8 smoothquant, static range", more="w8a8 static range"),
        Claim(says="below plain W8A8, a token", file="activations",
              less="w8a8 smoothquant, dynamic", more="w8a8 dynamic"),
    ],
    "QuaRot, arXiv:2404.00456": [
        Claim(says="a Hadamard rotation below none, W4A4", file="rewrites",
              less="hadamard, w4a4_r4", more="none, w4a4_r4"),
        Claim(says="a Hadamard rotation below a random one, W4A4", file="rewrites",
              less="hadamard, w4a4_r4", more="random_rotation, w4a4_r4"),
        Claim(says="a small gain for weights of 4 bits alone", file="rewrites",
              less="hadamard, w4", more="none, w4", why=FOLDED),
    ],
    "Peers": [
        *(Claim(says=f"AutoRound below GPTQ of others, {width} bits", file="peers",
                less=f"autoround at {width} bits", more=f"gptqmodel at {width} bits") for width in (4, 3, 2)),
        *(Claim(says=f"ours below AutoRound, {width} bits, {named}", file="peers",
                less=f"pennyweight-{mode} at {width} bits", more=f"autoround at {width} bits")
          for width, mode, named in ((4, "corrected", "rounded twice"), (3, "trained", "trained end to end"),
                                     (3, "vectors", "GPTVQ"), (2, "trained", "trained end to end"),
                                     (2, "vectors", "GPTVQ"))),
        Claim(says="our Q4_K at most llama.cpp's own", file="gguf_types",
              less="q4_k by round_to_nearest", more="q4_k by llama.cpp"),
        Claim(says="our Q6_K at most llama.cpp's own, mean of eight orders of the inputs, well within its error",
              file="gguf_types", less="q6_k by round_to_nearest", more="q6_k by llama.cpp"),
    ],
}  # fmt: skip


def page() -> str:
    """The whole page, as Markdown."""
    claims = [claim for found in SOURCES.values() for claim in found if claim.measured]
    held = sum(claim.holds for claim in claims)
    lines = [
        "# What papers say of two methods, and what we measured", "",
        "Made by `python benchmarks/orderings.py` out of `benchmarks/results/`; the tests hold it to them. Lower is "
        "better everywhere: KL to the network before in nats a token, of predictions for a ResNet, a ViT, a Mixtral "
        "and a Mamba, one minus the cosine for MiniLM, perplexity for rewrites and GGUF types. \"Close to\" is within "
        f"{NEAR - 1:.0%}. {held} of {len(claims)} hold here.", "",
    ]  # fmt: skip
    for source, found in SOURCES.items():
        lines += [f"## {source}", "", "| what is said | here | |", "|---|---|---|"]
        for claim in found:
            if not claim.measured:
                lines.append(f"| {claim.says} | | not measured yet |")
                continue
            less, more = claim.values
            verdict = "holds" if claim.holds else "**does not hold**"
            lines.append(f"| {claim.says} | {number(less)} against {number(more)} | {verdict} |")
        reasons = dict[str, list[str]]()
        for claim in found:
            if claim.why:
                reasons.setdefault(claim.why, []).append(claim.says)
        lines += ["", *(f"Why not ({'; '.join(said)}): {why}.\n" for why, said in reasons.items())]
    return "\n".join(lines).rstrip() + "\n"


def number(value: float) -> str:
    """Three digits, four of a perplexity."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{4 if value >= 10 else 3}g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
