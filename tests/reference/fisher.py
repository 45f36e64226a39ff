"""The diagonal of the Fisher information of a layer's output, by autograd through the whole model, token by token."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Watched:
    """A float64 copy of a model that remembers what its linear layers returned in the last pass."""

    def __init__(self, model: nn.Module, layers: list[str]) -> None:
        self.model = copy.deepcopy(model).double().requires_grad_(False)
        self.outputs: dict[str, Tensor] = {}
        for name in layers:
            self.model.get_submodule(name).register_forward_hook(
                lambda _, __, output, key=name: self.outputs.__setitem__(key, output)
            )
        # Nothing in the model asks for gradients, so the graph starts at the embeddings.
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        embedding.register_forward_hook(lambda _, __, output: output.detach().requires_grad_())

    def log_p(self, ids: Tensor) -> Tensor:
        """Log-probabilities `[length, vocabulary]` of one window."""
        logits: Tensor = self.model(input_ids=ids[None], use_cache=False).logits[0]
        return logits.log_softmax(-1)

    def gradients(self, scalar: Tensor) -> dict[str, Tensor]:
        """Gradient of a number with respect to every layer's output `[length, out]`; the graph is kept."""
        names = list(self.outputs)
        found = torch.autograd.grad(scalar, [self.outputs[n] for n in names], retain_graph=True, allow_unused=True)
        return {
            n: torch.zeros_like(self.outputs[n][0]) if g is None else g[0] for n, g in zip(names, found, strict=True)
        }


def of_samples(model: nn.Module, layers: list[str], ids: Tensor, drawn: Tensor) -> dict[str, Tensor]:
    """Mean over positions of the squared gradient of Σ_t log p(drawn_t); one backward pass for every token drawn."""
    watched = Watched(model, layers)
    sums: dict[str, Tensor] = {}
    for window, tokens in zip(ids, drawn, strict=True):
        log_p = watched.log_p(window)
        total: dict[str, Tensor] = {}
        for position, token in enumerate(tokens.tolist()):
            for name, gradient in watched.gradients(log_p[position, token]).items():
                total[name] = total.get(name, torch.zeros(())) + gradient
        for name, gradient in total.items():
            sums[name] = sums.get(name, torch.zeros(())) + gradient.square().sum(0)
    return {name: value / ids.numel() for name, value in sums.items()}


def exact(model: nn.Module, layers: list[str], ids: Tensor) -> dict[str, Tensor]:
    """Take the expectation of `of_samples` over the tokens drawn: Σ_t Σ_y p_t(y) (∂ log p_t(y))², mean over positions.

    The scores of different positions have mean zero and are drawn independently, so their cross terms vanish.
    """
    watched = Watched(model, layers)
    sums: dict[str, Tensor] = {}
    for window in ids:
        log_p = watched.log_p(window)
        for position in range(len(window)):
            for token in range(log_p.shape[1]):
                weight = log_p[position, token].detach().exp()
                for name, gradient in watched.gradients(log_p[position, token]).items():
                    sums[name] = sums.get(name, torch.zeros(())) + weight * gradient.square().sum(0)
    return {name: value / ids.numel() for name, value in sums.items()}
