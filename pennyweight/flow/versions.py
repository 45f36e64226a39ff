"""Versions that results may depend on."""

from __future__ import annotations

import platform

import safetensors
import scipy
import torch
import transformers

VERSION = "0.1.0"


def versions() -> dict[str, str]:
    """Versions that results may depend on."""
    return {
        "pennyweight": VERSION, "python": platform.python_version(), "torch": str(torch.__version__),
        "transformers": transformers.__version__, "safetensors": safetensors.__version__, "scipy": scipy.__version__,
    }  # fmt: skip
