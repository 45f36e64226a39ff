"""Statistics of every activation that a weight reads or writes, of any network: one pass over calibration data.

A language model goes block by block, with the weights of one block in memory; a module in memory is run as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement
from pennyweight.network.network import Network
from pennyweight.network.running.observe import Observing, Seen
from pennyweight.network.running.rounding import Change, attentions, seen_by
from pennyweight.network.running.run import materialised
from pennyweight.network.running.stream import Stream
from pennyweight.statistics import Statistics

HEAD_TOKENS = 512  # whose logits are computed: the head reads as much of an activation as is needed to know its range


def observe(
    network: Network, calibration: Windows | Sequence[Mapping[str, Any]], *, gram: bool = False
) -> dict[str, Statistics]:
    """Range, mean, some rows and, where asked for, second moments of every `site:input` and `site:output`.

    Args:
        network: of a model on disk, or of a module in memory.
        calibration: windows of text for a language model, or keyword arguments of forward passes for anything.
        gram: whether second moments of what is read are kept: size² numbers an edge.

    Raises:
        InvalidMeasurement: there is nothing to run on.
    """
    if not len(calibration):
        raise InvalidMeasurement(
            "no calibration data", expected="one window or batch at least", mend="pass some", site="calibration"
        )
    if isinstance(calibration, Windows):
        seen = _streamed(network, calibration, gram) if network.blocks else _whole(
            network, [{"input_ids": ids[None]} for ids in calibration.ids], gram
        )  # fmt: skip
    else:
        seen = _whole(network, calibration, gram)
    return {name: _statistics(name, one) for name, one in seen.items() if one.count}


def observe_caches(network: Network, windows: Windows) -> dict[str, tuple[Statistics, Statistics]]:
    """Range and some rows of the keys and values of every module of attention, channels those of a head.

    Args:
        network: a causal language model.
        windows: of text.
    """
    runner, seen = Stream(network), dict[str, tuple[Seen, Seen]]()

    def recording(name: str, place: int) -> Change:
        def record(x: Tensor) -> Tensor:
            if name not in seen:
                seen[name] = (Seen(x.shape[-1], gram=False), Seen(x.shape[-1], gram=False))
            seen[name][place].add(x.detach().reshape(-1, x.shape[-1]))
            return x

        return record

    for name in attentions(runner.module("")):
        seen_by(runner.module(name), recording(name, 0), recording(name, 1))
    runner.forward(windows.ids)
    return {
        name: (_statistics(f"{name}:keys", keys), _statistics(f"{name}:values", values))
        for name, (keys, values) in seen.items()
    }


def _whole(network: Network, batches: Sequence[Mapping[str, Any]], gram: bool) -> dict[str, Seen]:
    with materialised(network, exact=False, dtype=torch.float32) as model, torch.no_grad():
        observing = Observing(dict(model.named_parameters(remove_duplicate=False)), model, gram=gram)
        with observing:
            for batch in batches:
                model(**batch)
    return observing.seen


def _streamed(network: Network, windows: Windows, gram: bool) -> dict[str, Seen]:
    runner, seen = Stream(network), dict[str, Seen]()
    with torch.no_grad():
        chunks = torch.split(windows.ids, max(1, runner.chunk_tokens // windows.length))
        with runner.beginning() as begin:
            hidden = [begin(chunk) for chunk in chunks]
        for index, block in enumerate(network.blocks):
            with runner.block(index) as run:
                parameters = {name: runner.parameter(name) for name in block.parameters}
                observing = Observing(parameters, runner.module(""), gram=gram)
                with observing:
                    hidden = [run(chunk) for chunk in hidden]
                seen |= observing.seen
        with runner.end() as finish:
            parameters = {name: runner.parameter(name) for name in network.outer}
            observing = Observing(parameters, runner.module(""), gram=gram)
            with observing:
                finish(torch.cat(hidden).flatten(0, 1)[:HEAD_TOKENS])
            seen |= observing.seen
    return seen


def _statistics(name: str, seen: Seen) -> Statistics:
    return Statistics(
        edge=name, count=seen.count, mean=(seen.sum / seen.count).float(), low=seen.low, high=seen.high,
        abs_max=torch.maximum(seen.low.abs(), seen.high.abs()), sample=torch.cat(seen.rows),
        gram=None if seen.gram is None else seen.gram / seen.count,
    )  # fmt: skip
