"""The ResNet of benchmarks/any_module.py as a problem of widths, and trials that measure its KL on pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import any_module as networks
import torch
from any_module import Prepared
from shelf_modules import change, outputs
from torch import Tensor

import pennyweight as pw
from pennyweight import catalogue
from pennyweight.flow.modules.build import compress
from pennyweight.flow.modules.look import look
from pennyweight.flow.modules.store import packed_bytes
from pennyweight.flow.progress import QUIET
from pennyweight.plan import Option, Step
from pennyweight.problem import Choice, Table


@dataclass(frozen=True, eq=False)
class Widths:
    """The network, what its weights become under every option, and what they are measured on.

    Args:
        given: the network and its outputs.
        weights: of every layer under every option, as they are stored.
        names: of their parameters.
        held_out: pictures.
        before: outputs of the network as it was.
    """

    given: Prepared
    weights: list[list[Tensor]]
    names: list[str]
    held_out: list[dict[str, Tensor]]
    before: Tensor


class Pictures:
    """Trials; `tokens` are pictures, and always all of them."""

    def __init__(self, widths: Widths) -> None:
        self.widths, self.most = widths, len(widths.before)

    def measure(self, choices: Sequence[Choice], *, tokens: int, draw: int = 0) -> list[float]:  # noqa: ARG002
        w, found = self.widths, []
        parameters = dict(w.given.module.named_parameters())
        kept = {name: parameters[name].data for name in w.names}
        for choice in choices:
            for name, options, place in zip(w.names, w.weights, choice, strict=True):
                parameters[name].data = options[place]
            found.append(change("resnet", w.before, outputs(w.given, w.given.module, w.held_out)))
        for name, weight in kept.items():
            parameters[name].data = weight
        return found


def prepared(widths: Sequence[int], items: int) -> tuple[Table, Widths]:
    """Options of every layer with their predicted damage (flow/modules/table.py), all carried out by GPTQ."""
    torch.set_num_threads(1)
    given = networks.prepare_vision(networks.resnet, "x", 600, 4e-3)
    module = given.module.eval().requires_grad_(False)
    network = pw.network_of(module, {"x": given.calibration[0]["x"][:2]})
    seen = look(module, network, given.calibration, given.outputs, seed=networks.SEED, progress=QUIET)
    steps = [Step.parse(f"gptq int{width} row asym") for width in widths]
    formats = [step.stages[0].format for step in steps]
    table, weights = [], []
    for site in network.sites:
        own, stored = seen[site.parameter], module.get_parameter(site.parameter).detach()
        weight = site.matrix(stored).float()
        ((statistics, _),) = own.statistics(site.name)
        assert statistics is not None
        changed = catalogue.find("gptq", "quantization").predict(weight, statistics, formats)
        damages = changed @ own.sensitivity / (2 * statistics.require_gram().trace())
        table.append([
            Option(sites=(site.name,), step=step, bytes=packed_bytes(site.shape, format), damage=float(damage))
            for step, format, damage in zip(steps, formats, damages, strict=True)
        ])  # fmt: skip
        results = [compress(site, weight, own, step, networks.SEED)[0].dequantize() for step in steps]
        weights.append([site.restored(result, stored.shape).clone() for result in results])
    held_out = given.held_out[: items // 50]
    before = outputs(given, module, held_out)
    return table, Widths(given, weights, [site.parameter for site in network.sites], held_out, before)
