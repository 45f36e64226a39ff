"""Give freed memory back to the system.

The C library keeps freed pieces of a few megabytes for later, scattered between live ones; over many layers that grows
to several times what is in use. Trimming after every block costs about a millisecond and keeps peak memory a matter of
blocks.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path


def _find_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    return trim


_TRIM = _find_trim()


def release() -> None:
    """Return the memory of freed tensors to the system, where the C library can."""
    if _TRIM is not None:
        _TRIM(0)


def peak() -> int:
    """Most resident memory of this process so far, bytes.

    Not what getrusage says, where the system tells more: that begins at the size of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
