"""What every weight multiplies, as in `reading`, and how much of it arrives: the gates that experts are multiplied by.

Source: Hu et al. MoEQuant: Enhancing Quantization for Mixture-of-Experts Large Language Models via Expert-Balanced
Sampling and Affinity Guidance. ICML 2025. arXiv:2505.03804: affinity-guided quantization counts a token in the Hessian
of an expert by the gate c with which the expert's output is multiplied, H = Σ c x xᵀ.

Departs from it: no module is known by name. Rows that are gathered, or multiplied by a stack of matrices, are followed
through whatever keeps their number and order, until a product with one number a row: that is the gate, after any
renormalisation. What follows from the rows themselves is none, so a norm's 1/rms is not taken for it. The router stays
dense, and nothing is routed again.

When: tokens of an expert have gates that differ much, and lie in other directions where they do: there the error of
what a layer adds falls by more than a fifth at 2 bits with c, and further with c², which is that error to the letter
(`tests/unit/test_affinity.py`). Cost: what experts read in one pass is kept until it ends. Known failures: a small
Mixtral trained on bytes, 2 of 8 experts a token, gained at most two hundredths of its KL at 4, 3 and 2 bits
(`benchmarks/results/shelf_experts.json`), and lost a little with c². That is about the size of chance. The
source reports .1 to .5 points of accuracy.

A gate before the expert (some families scale its inputs) is in the inputs already. One inside a matrix product or an
einsum is not seen, nor that of an expert that all tokens pass: these rows count fully.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pennyweight.network.finding.watch import transparent
from pennyweight.network.running.reading import Reading, Taken, plain_attention, step_of

TIMES = frozenset({"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"})
GATHERED = frozenset({"__getitem__", "index_select"})
MOVED = frozenset({
    "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "t", "flip", "roll", "sort",
    "gather", "scatter", "index_add", "index_add_", "take_along_dim", "__get__", "__setitem__", "repeat",
    "repeat_interleave",
})  # rows may stand in another order afterwards  # fmt: skip

# Called with the name of a tensor, rows `[parts, n, in]`, the part that read them, and the gate of each row, None where
# there is none.
SeeWeighed = Callable[
    [str, Float[Tensor, "parts n in"], int | None, Float[Tensor, "parts n"] | None], None
]  # fmt: skip


@contextmanager
def weighing(parameters: Mapping[str, Tensor], see: SeeWeighed) -> Iterator[Weighing]:
    """Call `see` with what every weight multiplies while the block runs, and with the gates of what experts read.

    Args:
        parameters: the weights, by name.
        see: told the name of the tensor, the rows, the part that read them, and their gates.

    Yields:
        The mode: see `reading`; `flush` it after every pass.
    """
    with plain_attention(), transparent(), Weighing(parameters, see) as mode:
        yield mode
    mode.flush()


@dataclass(eq=False)
class _Read:
    """Rows that wait for their gate, every `step`-th of those that were taken of a product."""

    name: str
    rows: Tensor
    part: int | None
    taken: Taken
    step: int
    told: bool = False

    def of(self, gates: Float[Tensor, " total"]) -> Float[Tensor, "parts n"]:
        """Those of these rows."""
        own = gates if self.taken.which is None else gates[self.taken.which]
        return own.reshape(len(self.rows), -1)[:, :: self.step]


class Weighing(Reading):
    """See `weighing`.

    Args:
        parameters: the weights, by name.
        see: told of every product.
    """

    def __init__(self, parameters: Mapping[str, Tensor], see: SeeWeighed) -> None:
        super().__init__(parameters, lambda *_: None)
        self._weighed = see
        self._new: list[_Read] = []
        self._waiting: list[_Read] = []
        self._followed = WeakTensorKeyDictionary()  # tensor: its rows, and what was read on the way to it

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        new, self._new = self._new, []
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._follow(getattr(func, "__name__", ""), given, result, new)
        return result

    def flush(self) -> None:
        """Tell of all rows whose gate did not come."""
        for read in self._waiting:
            self._weighed(read.name, read.rows, read.part, None)
        self._waiting = []

    def _tell(self, name: str, rows: Tensor, part: int | None, taken: Taken | None = None) -> None:
        step, rows = step_of(rows), self._some(name, rows)
        if taken is None:
            self._weighed(name, rows, part, None)
        else:
            self._new.append(_Read(name, rows, part, taken, step))

    def _follow(self, name: str, given: list[Tensor], result: Any, new: list[_Read]) -> None:
        known = [self._known(tensor) for tensor in given if tensor in self._followed]
        if new and not known and all(self._parameters[read.name].dim() < 3 for read in new):
            for read in new:  # neither a stack nor gathered: all tokens pass it
                self._weighed(read.name, read.rows, read.part, None)
        elif new:
            self._waiting += new
            self._keep(result, new[0].taken.total, [*new, *(read for _, reads in known for read in reads)])
        elif name in GATHERED and not self._holds(given[0]) and any(map(_is_index, given[1:])):
            self._keep(result, result[..., 0].numel() if result.dim() else 0, [])  # it begins again
        elif known and name not in MOVED and not (name in TIMES and len(given) == 2 and self._gate(*given)):
            for count in sorted({count for count, _ in known}):
                own = [read for rows, reads in known if rows == count for read in reads]
                for one in result if isinstance(result, tuple | list) else [result]:
                    self._keep(one, count, own)

    def _gate(self, one: Tensor, two: Tensor) -> bool:
        """Whether one of two factors holds the gates of the other's rows, which are told then."""
        for x, gate in ((one, two), (two, one)):
            count, reads = self._known(x)
            _, before = self._known(gate)
            waiting = [read for read in reads if not read.told]
            one_a_row = gate.is_floating_point() and gate.dim() and gate.shape[-1] == 1 and gate.numel() == count
            if waiting and one_a_row and not {*before} & {*reads}:
                gates = gate.detach().reshape(-1).float()
                for read in waiting:
                    self._weighed(read.name, read.rows, read.part, read.of(gates))
                    read.told = True
                self._waiting = [read for read in self._waiting if not read.told]
                return True
        return False

    def _known(self, tensor: Tensor) -> tuple[int, list[_Read]]:
        if tensor not in self._followed:
            return 0, []
        found: tuple[int, list[_Read]] = self._followed[tensor]
        return found

    def _keep(self, tensor: Any, count: int, reads: list[_Read]) -> None:
        """Follow what still has a row for each row, in the same order."""
        if isinstance(tensor, Tensor) and tensor.dim() > 1 and count in (tensor[..., 0].numel(), tensor.shape[0]):
            self._followed[tensor] = (count, list(dict.fromkeys(reads)))


def _is_index(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()
