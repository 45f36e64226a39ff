"""A module in memory as a source, so that anything PyTorch can run can be looked at, rewritten and compressed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.network.sources.source import TensorInfo, find_tensor


class ModuleSource:
    """The parameters of a module, and what is stored of a norm's statistics, by name; the module is not changed.

    Args:
        module: it stays in memory for as long as the source lives.
        name: what to call it in messages.
    """

    def __init__(self, module: nn.Module, *, name: str = "") -> None:
        self.module = module
        self.path = Path(name or type(module).__name__)
        self.config: Mapping[str, Any] = {"model_type": type(module).__name__}
        self._parameters: dict[str, Tensor] = {**dict(module.named_parameters()), **stored_buffers(module)}
        self.tensors: Mapping[str, TensorInfo] = {
            key: TensorInfo(key, tuple(p.shape), str(p.dtype).removeprefix("torch."), p.numel() * p.element_size())
            for key, p in self._parameters.items()
        }

    def read(self, name: str) -> Tensor:
        """A copy of one parameter.

        Raises:
            InvalidModel: there is no such parameter.
        """
        find_tensor(self.tensors, name, self.path)
        return self._parameters[name].detach().clone()

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over names, types and values."""
        digest = hashlib.sha256()
        for name, parameter in self._parameters.items():
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(info.bytes for info in self.tensors.values())

    @property
    def description(self) -> str:
        """Kind and number of tensors."""
        return f"{type(self.module).__name__} in memory, {len(self.tensors)} tensors"

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Nothing lies beside it."""
        return {}


def stored_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers of floats that a checkpoint of the module would hold, such as running means; by name."""
    found = {}
    for path, owner in module.named_modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point() and name not in owner._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = buffer
    return found


def module_with(module: nn.Module, read: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with some of its parameters replaced; shared ones stay shared.

    Args:
        module: is not changed.
        read: new values by the name of the parameter, in any float type.
    """
    own = copy.deepcopy(module)
    parameters = dict(own.named_parameters())
    with torch.no_grad():
        for name, values in read.items():
            parameters[name].copy_(values)
    return own
