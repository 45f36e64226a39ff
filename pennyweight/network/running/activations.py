"""A network whose layers read rounded numbers: what an engine with integer activations would compute.

Rounding happens where a weight meets what it reads, whatever module or function does the product; probabilities are
rounded between the softmax and the values of PyTorch's attention. No family of models is named. That decoded numbers
multiplied as floats are what the integers of an engine give is held by the tests of `numerics.integer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from pennyweight.network.running.online import Rotation, Rounding, identity, online
from pennyweight.network.running.rounding import Rounds


@contextmanager
def activations(
    model: nn.Module, inputs: Mapping[str, Rounds], *, probabilities: Rounds | None = None,
    round_weights: Rounding | None = None, rotations: Mapping[str, Rotation] | None = None,
) -> Iterator[nn.Module]:  # fmt: skip
    """The model, whose sites read rounded numbers for as long as the context lasts; nothing of it is changed.

    Args:
        model: run it inside the context, as often as needed.
        inputs: by the name of a site, such as `model.layers.0.mlp.down_proj`, how what it reads is rounded.
        probabilities: how what the softmax of attention gives is rounded.
        round_weights: applied to the weight of every named site, once for each.
        rotations: by the name of a site, what its input and its weight go through before they are rounded.

    Raises:
        InvalidModel: a site is not one of the model's or was never seen to multiply anything, or probabilities were to
            be rounded and attention is not PyTorch's scaled_dot_product_attention.
    """
    sites = dict.fromkeys([*inputs, *(rotations or {})], identity) | dict(rotations or {})

    def round_input(site: str, x: Tensor) -> Tensor:
        return inputs[site].rounded(x) if site in inputs else x

    rounding = None if probabilities is None else probabilities.rounded
    with online(
        model, sites, round_inputs=round_input, round_weights=round_weights, round_probabilities=rounding
    ) as running:
        yield running
