"""Our own run-time, as `export/probes/loop.py` measures any engine; options say `dtype` and `dense`."""

from __future__ import annotations

from typing import Any

import torch

from pennyweight.flow.load import load
from pennyweight.flow.sampling.generate import Resident
from pennyweight.flow.versions import VERSION
from pennyweight.network.running.runnable import runnable


class Timed:
    """A network in memory, and the cache of what it read last."""

    version = f"pennyweight {VERSION}, torch {torch.__version__}"

    def __init__(self, path: str, dtype: str, *, dense: bool) -> None:
        network = load(path)
        self.model = Resident(network, runnable(network, getattr(torch, dtype), dense=dense).model)
        self.cache: Any = None

    def prefill(self, ids: Any) -> None:
        """Read a batch of prompts."""
        self._read(ids, None)

    def step(self, ids: Any) -> None:
        """Read one more token of each."""
        self._read(ids[:, None], self.cache)

    def _read(self, ids: Any, cache: Any) -> None:
        logits, self.cache = self.model.step(torch.from_numpy(ids), cache)
        logits.argmax(-1)


def timed(path: str, options: dict[str, Any]) -> Timed:
    """See `loop.py`."""
    torch.set_num_threads(options["threads"])
    return Timed(path, options["dtype"], dense=options["dense"])
