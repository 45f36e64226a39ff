"""Every exception of Pennyweight: what happened, what was expected, how to mend it."""

from __future__ import annotations


class PennyweightError(Exception):
    """Base of every error raised on purpose.

    Args:
        happened: what happened, in one sentence without a final full stop.
        expected: what would have been right.
        mend: what the user can do about it.
        site: the tensor, file or option it is about; printed first.
    """

    def __init__(self, happened: str, *, expected: str = "", mend: str = "", site: str = "") -> None:
        super().__init__(happened)
        self.happened = happened
        self.expected = expected
        self.mend = mend
        self.site = site

    def __str__(self) -> str:
        lines = [f"{self.site}: {self.happened}" if self.site else self.happened]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.mend:
            lines.append(f"  mend:     {self.mend}")
        return "\n".join(lines)


class InvalidModel(PennyweightError, ValueError):
    """The model directory or file is not something we can read a network from."""


class MissingFile(PennyweightError, FileNotFoundError):
    """A file or directory that was named, or that an index lists, is not there."""


class CorruptFile(PennyweightError, ValueError):
    """A file is there but its bytes are not what its header or hash says."""


class InvalidWeights(PennyweightError, ValueError):
    """A weight holds NaN or infinite values."""


class InvalidText(PennyweightError, ValueError):
    """The text cannot be used: not UTF-8, too short for the claim, or shared between calibration and held-out."""


class InvalidFormat(PennyweightError, ValueError):
    """A storage format does not fit the tensor, or its parameters contradict each other."""


class InvalidMethod(PennyweightError, ValueError):
    """A method's argument is outside its range."""


class InvalidBudget(PennyweightError, ValueError):
    """A budget that means nothing: negative, without a unit, or a confidence outside (0, 1)."""


class InfeasibleBudget(PennyweightError, ValueError):
    """No plan meets the budget; the nearest one that can be met is in `mend`."""


class InvalidPlan(PennyweightError, ValueError):
    """A plan that does not parse, or that was made for another model."""


class InvalidOutput(PennyweightError, OSError):
    """The output directory is not empty, not writable, or belongs to another run."""


class RunInUse(PennyweightError, BlockingIOError):
    """Another process is working on the same output directory."""


class DiskFull(PennyweightError, OSError):
    """A file could not be written whole; everything written before it is intact."""


class MissingStatistics(PennyweightError, LookupError):
    """The edge a site reads carries no statistics of the kind a method needs."""


class NotPositiveDefinite(PennyweightError, ArithmeticError):
    """A gram matrix has no Cholesky factor, even with the largest damping allowed."""


class UnknownName(PennyweightError, LookupError):
    """No method, format, engine or metric has this name; the nearest known ones are in `mend`."""


class MissingExtra(PennyweightError, ImportError):
    """An optional package is needed for this and is not installed."""


class InvalidWorkers(PennyweightError, ValueError):
    """Workers that cannot be reached, or that would not give the same bits."""


class WorkerLost(PennyweightError, RuntimeError):
    """A task whose worker died, again and again; what was finished is kept."""


class VerificationFailed(PennyweightError, ValueError):
    """An artifact, its certificate or its evidence is not what was sealed."""


class InvalidMeasurement(PennyweightError, ValueError):
    """Scores that cannot be compared: not finite, or of unequal lengths."""


class InvalidTransform(PennyweightError, ValueError):
    """A change of basis that an edge does not let through, or that has no inverse; the edge is in `site`."""


class NotEquivalent(PennyweightError, ArithmeticError):
    """A rewrite changed the function of a network by more than rounding explains."""


class EngineFailed(PennyweightError, RuntimeError):
    """An engine in a process of its own ended, or could not do what it was asked."""
