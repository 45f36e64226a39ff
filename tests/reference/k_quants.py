"""K and IQ4 types as llama.cpp searches for them, a sub-block at a time: a slow float64 twin of its published rules.

Source: llama.cpp, ggml/src/ggml-quants.c: `make_qkx2_quants`, `make_qx_quants`, and the functions that quantize a row
of each type. Every weight counts as `importance` says; the file's own weights, by size, serve another error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Levels above zero, largest whole number of a scale, first share, share a step, steps.
MINIMA = {"q2_k": (3, 15, -0.5, 0.1, 15), "q4_k": (15, 63, -1.0, 0.1, 20), "q5_k": (31, 63, -0.5, 0.1, 15)}
SIGNED = {"q3_k": (4, 32), "q6_k": (32, 128)}  # largest size of a code, of a scale
SUB = {"q2_k": 16, "q3_k": 16, "q4_k": 32, "q5_k": 32, "q6_k": 16, "iq4_xs": 32, "iq4_nl": 32}
UNEVEN = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float64)


def half(x: float) -> float:
    return float(np.float16(x))


def qkx2(x: Array, w: Array, top: int, first: float, delta: float, steps: int) -> tuple[float, float]:
    """Scale and minimum (with its sign turned) of one sub-block."""
    low, high = min(float(x.min()), 0.0), float(x.max())
    if high == low:
        return 0.0, -low

    def codes(wanted: float) -> Array:
        return np.clip(np.rint((x - low) * wanted / (high - low)), 0, top)

    scale = (high - low) / top
    best = float((w * (scale * codes(top) + low - x) ** 2).sum())
    for step in range(steps + 1):
        code = codes(first + delta * step + top)
        a, b, c = w.sum(), (w * code).sum(), (w * code * code).sum()
        d, e = (w * x).sum(), (w * x * code).sum()
        determinant = a * c - b * b
        if determinant <= 0:
            continue
        trial, minimum = (a * e - d * b) / determinant, (c * d - b * e) / determinant
        if minimum > 0:
            trial, minimum = e / c, 0.0
        error = float((w * (trial * code + minimum - x) ** 2).sum())
        if error < best:
            best, scale, low = error, float(trial), float(minimum)
    return scale, -low


def qx(x: Array, w: Array, size: int) -> float:
    """Scale of one sub-block, of either sign."""
    peak = float(x[np.abs(x).argmax()])
    if peak == 0:
        return 0.0
    best, scale = -1.0, 0.0
    for step in (0, *range(-9, 0), *range(1, 10)):
        code = np.clip(np.rint(-(size + 0.1 * step) / peak * x), -size, size - 1)
        square, cross = float((w * code * code).sum()), float((w * code * x).sum())
        if square > 0 and cross * cross > best * square:
            scale = cross / square
            best = scale * cross
    return scale


def nearest(x: Array) -> Array:
    """Of the uneven numbers."""
    return UNEVEN[np.abs(x[..., None] - UNEVEN).argmin(-1)]


def iq4(x: Array, w: Array) -> float:
    """Scale of one sub-block of uneven numbers."""
    peak = float(x[np.abs(x).argmax()])
    best, scale = -1.0, 0.0
    for inverse in (-UNEVEN[0] / peak, *((step + UNEVEN[0]) / peak for step in range(-7, 8))):
        level = nearest(inverse * x)
        square, cross = float((w * level * level).sum()), float((w * level * x).sum())
        if square > 0 and cross * cross > best * square:
            scale = cross / square
            best = scale * cross
    return scale


def block(x: Array, w: Array, name: str) -> Array:
    """One block of 256 as it is read back."""
    xs, ws = x.reshape(-1, SUB[name]), w.reshape(-1, SUB[name])
    if name.startswith("iq4"):
        scales = np.array([iq4(a, b) for a, b in zip(xs, ws, strict=True)])
        peak = float(scales[np.abs(scales).argmax()])
        units = np.clip(np.rint(-32 / peak * scales), -32, 31)
        step = half(-peak / 32) * units if name == "iq4_xs" else scales.astype(np.float16).astype(np.float64)
        return (step[:, None] * nearest(xs / np.where(step == 0, np.inf, step)[:, None])).reshape(-1)
    if name in MINIMA:
        top, most, *search = MINIMA[name]
        found = np.array([qkx2(a, b, top, *search) for a, b in zip(xs, ws, strict=True)])
        d, m = (half(found[:, i].max() / most) for i in (0, 1))
        units = [np.clip(np.rint(most * found[:, i] / max(found[:, i].max(), 1e-30)), 0, most) for i in (0, 1)]
        step, offset, low = d * units[0][:, None], m * units[1][:, None], 0
    else:
        size, most = SIGNED[name]
        scales = np.array([qx(a, b, size) for a, b in zip(xs, ws, strict=True)])
        peak = float(scales[np.abs(scales).argmax()])
        units = np.clip(np.rint(-most / peak * scales), -most, most - 1)
        step, offset, low, top = half(-peak / most) * units[:, None], 0 * units[:, None], -size, size - 1
    safe = np.where(step == 0, np.inf, step)
    return (np.clip(np.rint((xs + offset) / safe), low, top) * step - offset).reshape(-1)


def quantized(weight: Array, importance: Array, name: str) -> Array:
    """A weight as it is read back."""
    rows, columns = weight.shape
    out = np.empty_like(weight)
    for row in range(rows):
        for start in range(0, columns, 256):
            at = slice(start, start + 256)
            out[row, at] = block(weight[row, at], importance[at], name)
    return out
