"""The rewrite that the docs show is run as it stands there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from families import BY_NAME

from pennyweight.flow.rewrite import rewrite
from pennyweight.network.changing.fold import Fold, Transform, channel_values, exact
from pennyweight.network.finding.kinds import takes_scales
from pennyweight.network.finding.trace import network_of
from pennyweight.promises import Deterministic, Promise

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "rewrites.md"


def test_the_rewrite_of_the_docs() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {
        "dataclass": dataclass, "ClassVar": ClassVar, "Promise": Promise, "Deterministic": Deterministic, "Fold": Fold,
        "Transform": Transform, "channel_values": channel_values, "exact": exact, "takes_scales": takes_scales,
        "torch": torch,
    }  # fmt: skip
    exec(code.group(1), names)
    family = BY_NAME["llama"]
    model = family.model()
    network = network_of(model, family.inputs(model))
    changed, steps = rewrite(network, [names["UnitRows"]()])
    assert len(steps[0].edges) >= 4
    up = next(site for site in network.sites if site.name.endswith("up_proj"))
    rows = changed.source.read(up.parameter).abs().amax(1)
    assert torch.allclose(rows, torch.ones_like(rows))
    assert not torch.allclose(network.source.read(up.parameter).abs().amax(1), torch.ones_like(rows))
