"""What the tests of both kinds of programs need: grids for a network, what is made of it, and our logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from pennyweight.export.engines import Engine
from pennyweight.flow.load import load
from pennyweight.formats import Compressed, Format, Grid, parse
from pennyweight.network.network import Network, Site
from pennyweight.network.running.run import materialised


def grids_of(network: Network, names: Mapping[str, str], dtype: str = "float16") -> dict[str, Format]:
    """The grid of each site whose name ends so, scales in `dtype`."""
    found: dict[str, Format] = {}
    for site in network.sites:
        label = names.get(site.name.rpartition(".")[2])
        if label:
            grid = parse(label)
            assert isinstance(grid, Grid)
            found[site.name] = replace(grid, scale_dtype=dtype)
    return found


def rounded(network: Network, formats: Mapping[str, Format]) -> Callable[[Site], Compressed]:
    """Round to nearest."""

    def compressed(site: Site) -> Compressed:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        return Compressed((formats[site.name].store(weight),), site.shape)

    return compressed


@torch.no_grad()
def outputs(network: Network, ids: torch.Tensor) -> torch.Tensor:
    """Logits of our loader."""
    with materialised(network, exact=False, dtype=torch.float32) as model:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def read_back(engine: Engine, network: Network, formats: Mapping[str, Format], out: Path) -> Network:
    """Hold what was written to what was computed, part by part and number by number; the network in the files."""
    compressed, part_of, found = rounded(network, formats), engine.files.parts(out), load(out)
    assert {site.name for site in found.sites} == {site.name for site in network.sites}
    for name, format in formats.items():
        site = network.by_name[name]
        meant, stored = compressed(site), network.stored_name(site.parameter)
        part = part_of(found.stored_name(site.parameter))
        assert part.format == format
        assert part.tensors.keys() == meant.parts[0].tensors.keys()
        assert all(torch.equal(part.tensors[key], tensor) for key, tensor in meant.parts[0].tensors.items())
        assert torch.equal(found.source.read(stored), meant.dequantize())
    norm = "model.norm.weight"
    assert torch.equal(found.source.read(norm), network.source.read(norm).to(torch.float16))
    assert set(found.source.auxiliary()) >= {"tokenizer.json"}
    assert "int4 g32 asym" in found.source.description
    return found
