"""What can be said on the command line; imports nothing but the standard library, so that --help is instant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

TEXT = "a .txt, .jsonl or folder; without it, the help topics every Python carries"


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as every other error is said."""

    def error(self, message: str) -> NoReturn:
        """Print one error and exit 2."""
        argument = re.match(r"argument ([^:]+): (.+)", message, re.DOTALL)
        site, happened = argument.groups() if argument else (self.prog, message)
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        self.exit(2, f"InvalidArguments: {site}: {happened}\n  expected: {usage}\n  mend:     {self.prog} --help\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; what follows a budget is its value, though it may begin with a minus."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--lose", "--fit", "--bits") and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return parser().parse_args(joined)


def at_least(least: int) -> Callable[[str], int]:
    """Read a whole number that is not smaller."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[-+]?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


def counts(text: str) -> tuple[int, ...]:
    """Read whole numbers above zero between commas."""
    return tuple(dict.fromkeys(at_least(1)(part.strip()) for part in text.split(",")))


def names(text: str) -> tuple[str, ...]:
    """Read names between commas; commas between brackets belong to a name's arguments."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    parts = tuple(part.strip() for part in found)
    if depth or not all(parts):
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: expected names between commas, such as a,b(c=1)")
    return parts


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = Parser(
        prog="pennyweight",
        description="Make a neural network smaller, and say with a stated confidence how much worse it became.",
        epilog="exit codes: 0 certified (or the size fits, or equal), 1 not certified (or different), 2 misuse",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    compress = verbs.add_parser("compress", help="compress a model within a budget and certify what it cost")
    _model(compress)
    compress.add_argument(
        "--out", required=True, metavar="DIR", help="directory to make; a killed run goes on in DIR.run"
    )
    _budget(compress)
    compress.add_argument("--plan", metavar="FILE", help="carry out this plan instead of searching")
    compress.add_argument("--held-out", metavar="TEXT", help="text that only the certificate may see")
    compress.add_argument(
        "--max-windows", type=at_least(1), metavar="N", help="certification units scored at most, a candidate"
    )
    compress.add_argument(
        "--search", default="", metavar="NAME", help="measure candidates and learn from them: thompson, evopress"
    )
    compress.add_argument(
        "--study", metavar="FILE", help="where a search remembers what it measured; without it, DIR.study.sqlite"
    )
    compress.add_argument(
        "--activations", default="", metavar="LABEL",
        help="layers also round what they read, where the engine has such products: 'int8 token', 'fp8 e4m3 token'",
    )  # fmt: skip
    compress.add_argument(
        "--kv-cache", default="", metavar="LABEL", help="keys and values are rounded as well: 'fp8 e4m3 tensor'"
    )
    _judging(compress)
    _search(compress)
    _workers(compress)
    _common(compress)

    plan = verbs.add_parser("plan", help="what each tensor would become and why; nothing is done")
    _model(plan)
    _budget(plan)
    plan.add_argument("-o", "--output", metavar="FILE", help="where the plan goes; without it, to stdout")
    plan.add_argument("--work", metavar="DIR", help="keep statistics here, for another plan of the same model")
    _search(plan)
    _common(plan)

    frontier = verbs.add_parser("frontier", help="what every size costs: many plans, each measured, as a picture")
    _model(frontier)
    frontier.add_argument("--out", required=True, metavar="DIR", help="directory to make: picture, numbers, plans")
    frontier.add_argument("--points", type=at_least(2), default=40, help="plans (%(default)s)")
    frontier.add_argument("--tokens", type=at_least(2), default=4096, help="each is measured on (%(default)s)")
    frontier.add_argument("--study", metavar="FILE", help="remembers what was measured (DIR.study.sqlite)")
    _search(frontier)
    _workers(frontier)
    _common(frontier)

    predict = verbs.add_parser("predict", help="before running: size, an interval for the damage, minutes, memory")
    _model(predict)
    _budget(predict)
    predict.add_argument("-o", "--output", metavar="FILE", help="write the plan as well")
    _search(predict)
    _common(predict)

    explain = verbs.add_parser("explain", help="why every tensor got what it got, and what another bit would bring")
    explain.add_argument("artifact", metavar="DIR", help="what compress wrote")
    _common(explain, network=False)

    check = verbs.add_parser("check", help="load files in their engine, and compare its logits with ours")
    check.add_argument("path", metavar="FILES", help="what compress wrote, another directory, or a .gguf file")
    check.add_argument(
        "--engine", metavar="NAME", help="pennyweight list names them; else the one they were written for"
    )
    check.add_argument("--python", metavar="PATH", help="an interpreter that has the engine; else this one, if it has")
    check.add_argument(
        "--within",
        type=float,
        metavar="KL",
        help="nats a token (0.02; 0.1 for files whose layers round what they read)",
    )
    check.add_argument("--on", metavar="TEXT", help=f"text to read: {TEXT}")
    check.add_argument("--windows", type=at_least(1), default=4, metavar="N", help="of that text (%(default)s)")
    check.add_argument("--length", type=at_least(2), default=128, help="tokens in a window (%(default)s)")
    _common(check, network=False)
    check.add_argument(
        "--allow-network", action="store_true", help="install the engine into an environment that is removed afterwards"
    )

    run = verbs.add_parser("run", help="continue a prompt, with weights as small in memory as in the files")
    _model(run)
    run.add_argument("prompt", metavar="TEXT", help="what to continue")
    run.add_argument("--tokens", type=at_least(1), default=64, metavar="N", help="to write at most (%(default)s)")
    run.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0 takes the likeliest (%(default)s)")
    run.add_argument("--seed", type=int, default=0, help="of sampling (%(default)s)")
    run.add_argument("--beside", metavar="MODEL", help="another model, to see where the two texts part")
    run.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    run.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16",
        help="of the arithmetic; codes are quick in bfloat16 alone, certificates are about float32 (%(default)s)",
    )  # fmt: skip
    _threads(run)
    _common(run)

    bench = verbs.add_parser("bench", help="tokens a second of files in every engine that reads them, in one table")
    bench.add_argument("path", metavar="FILES", help="what compress wrote, another directory, or a .gguf file")
    bench.add_argument(
        "--engine", type=names, default=("all",), metavar="NAMES",
        help="all, or some of pennyweight, dense, transformers, llama.cpp (all)",
    )  # fmt: skip
    bench.add_argument("--python", action="append", metavar="PATH", help="an interpreter with engines; may be repeated")
    bench.add_argument("--reference", metavar="MODEL", help="the model before; without it, the same weights decoded")
    bench.add_argument("--batches", type=counts, default=(1, 8), metavar="N,N", help="texts at once (1,8)")
    bench.add_argument("--prompt", type=at_least(1), default=512, metavar="N", help="tokens read (%(default)s)")
    bench.add_argument("--tokens", type=at_least(1), default=64, metavar="N", help="tokens written (%(default)s)")
    bench.add_argument("--repeats", type=at_least(1), default=5, metavar="N", help="that count (%(default)s)")
    _threads(bench)
    _common(bench, network=False)

    inspect = verbs.add_parser("inspect", help="blocks, sites, shapes, tied tensors, and what each engine could take")
    _model(inspect)
    inspect.add_argument(
        "--symmetries", action="store_true", help="also which changes of basis every edge lets through; tries them"
    )
    _common(inspect)

    rewrite = verbs.add_parser("rewrite", help="another basis for the same function: rotations, scales, folded norms")
    _model(rewrite)
    rewrite.add_argument(
        "--with", dest="methods", required=True, type=names, metavar="NAMES",
        help="rewrites in their order, such as untie,fold_norms,hadamard; arguments in parentheses",
    )  # fmt: skip
    rewrite.add_argument("--out", required=True, metavar="DIR", help="directory to make: an ordinary dense checkpoint")
    rewrite.add_argument("--calibration", metavar="TEXT", help=f"for rewrites that look at activations: {TEXT}")
    rewrite.add_argument("--length", type=at_least(2), default=256, help="tokens in a window (%(default)s)")
    rewrite.add_argument(
        "--calibration-windows", type=at_least(1), default=64, metavar="N", help="shown to rewrites (%(default)s)"
    )
    rewrite.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="of all tensors; without it, that of most"
    )
    rewrite.add_argument("--seed", type=int, default=0, help="of random rotations (%(default)s)")
    _threads(rewrite)
    _common(rewrite)

    export = verbs.add_parser("export", help="an artifact as files for another engine: the same numbers where they fit")
    export.add_argument("model", metavar="DIR", help="what compress wrote")
    _conversion(export)

    convert = verbs.add_parser("convert", help="the same for compressed files of any maker: GGUF, GPTQ …")
    _model(convert)
    _conversion(convert)

    prove = verbs.add_parser("prove", help="are two models one function: bit for bit, up to rounding, or not")
    _pair(prove)
    prove.add_argument("--on", metavar="TEXT", help="a text to try beside random tokens")
    prove.add_argument("--windows", type=at_least(1), default=8, metavar="N", help="of that text (%(default)s)")
    prove.add_argument("--length", type=at_least(2), default=64, help="tokens in a window (%(default)s)")
    prove.add_argument("--seed", type=int, default=0, help="of random tokens and rounding noise (%(default)s)")
    _threads(prove)
    _common(prove)

    certify = verbs.add_parser("certify", help="certify what any compressed model lost, whoever compressed it")
    _pair(certify)
    _losses(certify, required=True)
    certify.add_argument("--on", metavar="TEXT", help=f"text the claims are about: {TEXT}")
    certify.add_argument("--pilot", metavar="TEXT", help="text to plan with; without it, a part of --on")
    certify.add_argument("--out", metavar="DIR", help="where the certificate goes (OTHER.certificate)")
    certify.add_argument(
        "--max-units", type=at_least(1), metavar="N", help="windows or questions scored at most, on each text"
    )
    certify.add_argument("--length", type=at_least(2), default=256, help="tokens in a window (%(default)s)")
    certify.add_argument("--seed", type=int, default=0, help="of the choice of planning windows (%(default)s)")
    _judging(certify)
    _threads(certify)
    _common(certify)

    measure = verbs.add_parser("measure", help="everything about two models on texts and tasks, with intervals")
    _pair(measure)
    measure.add_argument(
        "--on", metavar="FILE", action="append", help=f"text or task, may be repeated: {TEXT}, or questions in .jsonl"
    )
    measure.add_argument("--groups", metavar="FIELD", help="a field of documents or questions; also document, folder")
    measure.add_argument("--length", type=at_least(2), default=256, help="tokens in a window (%(default)s)")
    measure.add_argument(
        "--max-units", type=at_least(1), metavar="N", help="windows or questions scored at most, chosen at random"
    )
    measure.add_argument("--confidence", type=float, default=0.95, help="of the intervals (%(default)s)")
    measure.add_argument("--seed", type=int, default=0, help="of the choice of units (%(default)s)")
    measure.add_argument("--html", metavar="FILE", help="write a page as well")
    _common(measure)

    power = verbs.add_parser("power", help="before running: how many units a claim needs, and the smallest possible")
    power.add_argument("model", metavar="MODEL", help="the reference")
    power.add_argument("compressed", metavar="OTHER", nargs="?", help="the model after; without it, plain rounding")
    _losses(power, required=True)
    power.add_argument("--on", metavar="TEXT", help=TEXT)
    power.add_argument("--scope", default="corpus", choices=("corpus", "source"), help="of the claim (%(default)s)")
    power.add_argument("--length", type=at_least(2), default=256, help="tokens in a window (%(default)s)")
    power.add_argument("--seed", type=int, default=0, help="of the choice of pilot units (%(default)s)")
    _common(power)

    tails = verbs.add_parser("tails", help="how often sampled text contains something rare and bad, before and after")
    _pair(tails)
    tails.add_argument("--prompts", required=True, metavar="FILE", help="one prompt a line")
    tails.add_argument("--bad", required=True, metavar="REGEX", help="a sampled text that matches is bad")
    tails.add_argument("--proposal", metavar="MODEL", help="a more damaged sibling to draw from")
    tails.add_argument("--samples", type=at_least(2), default=200, help="texts a prompt and model (%(default)s)")
    tails.add_argument("--max-tokens", type=at_least(1), default=32, help="in a sampled text (%(default)s)")
    tails.add_argument("--temperature", type=float, default=1.0, help="of the sampling (%(default)s)")
    tails.add_argument("--confidence", type=float, default=0.95, help="of the bounds (%(default)s)")
    tails.add_argument("--seed", type=int, default=0, help="of the samples (%(default)s)")
    _threads(tails)
    _common(tails)

    verify = verbs.add_parser("verify", help="check every hash and make the certificate again from its evidence")
    verify.add_argument("artifact", metavar="DIR", help="an artifact")
    _common(verify, network=False)

    pack = verbs.add_parser("pack", help="any model as one smaller file that gives back every bit")
    pack.add_argument("source", metavar="MODEL", help="a directory or a file of any kind")
    pack.add_argument("target", metavar="OUT", nargs="?", help="the container to make (MODEL.pwpack)")
    unpack = verbs.add_parser("unpack", help="what was packed, bit for bit")
    unpack.add_argument("source", metavar="FILE", help="a container")
    unpack.add_argument("target", metavar="OUT", nargs="?", help="what to make (FILE without .pwpack)")
    for verb in (pack, unpack):
        verb.add_argument("--threads", type=at_least(1), help="that code chunks; the bytes do not depend on it (cores)")
        _common(verb, network=False)

    report = verbs.add_parser("report", help="one self-contained HTML page")
    report.add_argument("artifact", metavar="DIR", help="an artifact")
    report.add_argument("-o", "--output", metavar="FILE", help="where it goes (DIR/report.html)")
    _common(report, network=False)

    listing = verbs.add_parser("list", help="every method: name, room, paper, what it needs; every format and engine")
    listing.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="only this: a room such as quantization, formats, engines; of a name, its page",
    )
    _common(listing, network=False)

    schema = verbs.add_parser("schema", help="JSON schema of certificate.json")
    _common(schema, network=False)
    return top


def _model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "model", metavar="MODEL", help="a Hugging Face directory, a .gguf file, or a hub id with --allow-network"
    )


def _conversion(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", metavar="OUT", help="directory to make; or a .gguf file")
    verb.add_argument(
        "--to",
        required=True,
        metavar="KIND",
        help="gguf, compressed-tensors, gptq, onnx, openvino, dense; or an engine",
    )
    verb.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"),
        help="of scales and dense tensors; without it, the first in which most numbers fit",
    )  # fmt: skip
    verb.add_argument("--method", default="round_to_nearest", help="rounds what does not fit (%(default)s)")
    verb.add_argument("--strict", action="store_true", help="refuse when any number would have to change")
    verb.add_argument("--reference", metavar="MODEL", help="certify changed files again, against the model before")
    verb.add_argument("--on", metavar="TEXT", help=f"measure changed files on this: {TEXT}")
    verb.add_argument("--windows", type=at_least(1), default=16, metavar="N", help="of that text (%(default)s)")
    verb.add_argument("--length", type=at_least(2), default=256, help="tokens in a window (%(default)s)")
    _threads(verb)
    _common(verb)


def _pair(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("reference", metavar="MODEL", help="the model before")
    verb.add_argument(
        "compressed", metavar="OTHER", help="the model after: a directory of any maker, a .gguf or an .onnx file"
    )


def _budget(verb: argparse.ArgumentParser) -> None:
    _losses(verb, required=False)
    group = verb.add_mutually_exclusive_group()
    group.add_argument("--fit", metavar="SIZE", help="best model whose files take at most this, such as 120MB")
    group.add_argument(
        "--bits", type=float, metavar="B", help="best model at this many stored bits per compressed weight"
    )


def _losses(verb: argparse.ArgumentParser, *, required: bool) -> None:
    verb.add_argument(
        "--lose",
        metavar="LIMIT",
        action="append",
        required=required,
        help="what may be lost, may be repeated and all must hold: 2%% (of perplexity), 'kl 0.02', 'agreement 3%%', "
        "'accuracy:quiz.jsonl 1pt' …; pennyweight list shows every metric",
    )
    verb.add_argument("--confidence", type=float, default=0.95, help="of the certificate (%(default)s)")


def _judging(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--scope",
        default="corpus",
        choices=("corpus", "source", "asymptotic"),
        help="what the claim is about: this very text, its source (documents are independent), or its source by a "
        "large-sample bound (%(default)s)",
    )
    verb.add_argument(
        "--engine", dest="bound", metavar="NAME", help="the bound; without it, the usual one of the scope"
    )
    verb.add_argument("--groups", metavar="FIELD", help="repeat the bounds by a field of documents or questions")
    verb.add_argument("--reserve", action="store_true", help="keep error level for later certificates on the same text")
    verb.add_argument("--salt", default="", help="declared part of the seed of the certification order")


def _search(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--for",
        dest="engine",
        default="transformers",
        metavar="ENGINE",
        help="whose files: pennyweight list shows all engines (%(default)s)",
    )
    verb.add_argument(
        "--formats", type=names, default=(), metavar="LABELS",
        help="let plans choose from these alone, such as 'int4 g128 sym,int8 row sym'; else from the engine's menu",
    )  # fmt: skip
    verb.add_argument("--calibration", metavar="TEXT", help=TEXT)
    verb.add_argument("--length", type=at_least(2), default=256, help="tokens in a window (%(default)s)")
    verb.add_argument(
        "--calibration-windows", type=at_least(1), default=64, metavar="N", help="shown to methods (%(default)s)"
    )
    verb.add_argument(
        "--selection-windows",
        type=at_least(2),
        default=32,
        metavar="N",
        help="candidates are compared on (%(default)s)",
    )
    verb.add_argument("--method", default="gptq", help="the quantizer (%(default)s)")
    verb.add_argument(
        "--rewrite", type=names, default=(), metavar="NAMES", help="change the basis first, see the verb rewrite"
    )
    verb.add_argument(
        "--recover",
        type=names,
        default=(),
        metavar="NAMES",
        help="improve what is stored: corrected_target, block_wise, end_to_end",
    )
    verb.add_argument("--allocation", default="integer_program", help="the allocator (%(default)s)")
    verb.add_argument("--pricing", default="kronecker", help="what predicts damages (%(default)s)")
    verb.add_argument("--speed", metavar="X", help="layers must be this much faster than dense, such as 2x")
    verb.add_argument("--memory", metavar="SIZE", help="the engine may take this for the model, such as 200MB")
    verb.add_argument(
        "--context", type=at_least(1), metavar="N", help="tokens of prompt and answer, for --memory (2048)"
    )
    verb.add_argument("--latency", metavar="FILE", help="times of the engine by shape and format, for --speed")
    verb.add_argument("--machine", metavar="NAME", help="where it will run, as the times name it; else this machine")
    verb.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="of everything that stays dense")
    verb.add_argument("--seed", type=int, default=0, help="of every random choice (%(default)s)")
    _threads(verb)


def _workers(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--workers", type=at_least(1), metavar="N", help="processes that share the work, with the same bytes"
    )
    verb.add_argument("--ray", metavar="HOST:PORT", help="a Ray cluster to work on; it shares the disk of this machine")


def _threads(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--threads", type=at_least(1), help="of the arithmetic; the same bits need the same number")


def _common(verb: argparse.ArgumentParser, *, network: bool = True) -> None:
    verb.add_argument("--json", action="store_true", help="results as JSON on stdout")
    verb.add_argument("--quiet", action="store_true", help="no progress on stderr")
    if network:
        verb.add_argument("--allow-network", action="store_true", help="download a model that is named by its hub id")
