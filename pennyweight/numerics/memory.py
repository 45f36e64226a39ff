"""Give freed memory back to the system.

The C library keeps freed pieces of a few megabytes for later, scattered between live ones; over many layers that grows
to several times what is in use. Trimming after every block costs about a millisecond and keeps peak memory a matter of
blocks.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


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
