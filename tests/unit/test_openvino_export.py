"""Files for OpenVINO: what it computes from them, what our reader finds in them, and files that lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from pennyweight.errors import (
    InvalidModel,
)
from pennyweight.export.engines import find
from pennyweight.export.openvino.source import OpenVINOWeights
from pennyweight.flow.check import check
from pennyweight.flow.load import load
from pennyweight.formats import Compressed, Format, Grid, parse
from pennyweight.network.network import Network, Site
from pennyweight.network.running.run import materialised

openvino = pytest.importorskip("openvino", reason="the openvino extra is not installed")

ENGINE = find("openvino")
GRIDS = {
    "q_proj": "int4 g32 sym", "k_proj": "int4 g16 asym", "v_proj": "int8 g32 asym", "o_proj": "int2 g32 asym",
    "gate_proj": "int2 g16 sym", "up_proj": "int8 row sym", "down_proj": "int4 row asym",
    "embed_tokens": "int4 g32 asym", "lm_head": "int4 g32 asym",
}  # fmt: skip


def grids_of(network: Network, names: Mapping[str, str] = GRIDS, dtype: str = "float16") -> dict[str, Format]:
    found: dict[str, Format] = {}
    for site in network.sites:
        label = names.get(site.name.rpartition(".")[2])
        if label:
            grid = parse(label)
            assert isinstance(grid, Grid)
            found[site.name] = Grid(
                bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric, scale_dtype=dtype
            )
    return found


def rounded(network: Network, formats: Mapping[str, Format]) -> Callable[[Site], Compressed]:
    def compressed(site: Site) -> Compressed:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        return Compressed((formats[site.name].store(weight),), site.shape)

    return compressed


def written(network: Network, formats: Mapping[str, Format], out: Path, dtype: str = "float16") -> Path:
    ENGINE.files.write(network, formats, rounded(network, formats), out, dtype=dtype).reconcile()
    return out


@torch.no_grad()
def outputs(network: Network, ids: torch.Tensor) -> torch.Tensor:
    """Logits of our loader."""
    with materialised(network, exact=False, dtype=torch.float32) as model:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


@pytest.fixture(scope="module")
def tied(network_of: Callable[[str], Network], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose head is its embedding, in every width, with and without zero points. Do not write to it."""
    network = network_of("llama_tied")
    return written(network, grids_of(network), tmp_path_factory.mktemp("openvino") / "tied")


def test_what_is_read_back_is_what_was_computed(network_of: Callable[[str], Network], tied: Path) -> None:
    network = network_of("llama_tied")
    formats = grids_of(network)
    compressed, part_of, found = rounded(network, formats), ENGINE.files.parts(tied), load(tied)
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
    assert isinstance(found.source, OpenVINOWeights)
    assert set(found.source.auxiliary()) >= {"tokenizer.json"}
    assert "int4 g32 asym" in found.source.description
    with pytest.raises(InvalidModel, match="not stored as codes"):
        found.source.read_part(norm)


def test_check(tied: Path) -> None:
    done = check(tied, windows=2, length=16)
    assert done.engine == "openvino"
    assert done.said == ""
    assert done.holds(1e-9)
    assert done.decode > 0
