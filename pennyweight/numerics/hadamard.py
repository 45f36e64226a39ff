"""Hadamard matrices, fast products with them, and random orthogonal matrices.

A Hadamard matrix H holds nothing but ±1 and has H Hᵀ = n I. Those here are Kronecker products of three kinds, made when
they are asked for:

- Sylvester: [[1, 1], [1, -1]], of order 2.
- Paley I: of order q + 1 for a field of q = 3 (mod 4) elements. H - I is skew-symmetric.
- Paley II: of order 2 (q + 1) for a field of q = 1 (mod 4) elements. H is symmetric.

Fields have p, p² or p³ elements, p an odd prime. Up to 256 that reaches 1, 2 and every multiple of 4 but 92, 116, 156,
172, 184, 188, 232 and 236. Some of their multiples exist all the same: 344 is Paley I with q = 7³. As H need not be
symmetric, its inverse is Hᵀ / n and not H / n.

Source: R. E. A. C. Paley, On orthogonal matrices, Journal of Mathematics and Physics 12 (1933).
"""

from __future__ import annotations

from functools import cache, lru_cache, reduce
from itertools import count, product

import numpy as np
import torch
from jaxtyping import Float, Float64, Int8
from numpy.typing import NDArray
from torch import Tensor

from pennyweight.errors import InvalidMethod

Matrix = NDArray[np.int8]

SYLVESTER: Matrix = np.array([[1, 1], [1, -1]], dtype=np.int8)
DEGREES = (1, 2, 3)  # of a field over the integers modulo p; up to 3, a polynomial without a root is irreducible
# A butterfly does one addition a number for a pass over memory, so a few dense factors of moderate size are faster than
# many butterflies (`benchmarks/hadamard.py` times both against one dense product).
DENSE = 128  # up to this order, one product does it all
FOLDED = 80  # up to this order, a Paley matrix takes in powers of two that would be a factor of their own
NARROW = 16  # below this many columns, a product from the left wastes the width of the processor


def order(n: int) -> tuple[int, int] | None:
    """Write n as K · 2ᵏ so that a Hadamard matrix of order K can be built, with the smallest such K.

    Returns:
        (K, 2ᵏ), or None if no Hadamard matrix of order n can be built here.
    """
    if n < 1:
        return None
    core = n // (n & -n)  # the odd part of n
    while core <= n:
        if _paley_orders(core) is not None:
            return core, n // core
        core *= 2
    return None


def hadamard(n: int) -> Int8[Tensor, "n n"]:
    """H_K ⊗ Sylvester(2ᵏ) for n = K · 2ᵏ as in `order`: entries ±1, H Hᵀ = n I. Takes n² bytes.

    Raises:
        InvalidMethod: no Hadamard matrix of order n can be built here; the error names the nearest orders.
    """
    cores, twos = _parts(n)
    return torch.from_numpy(_kronecker([*map(_paley, cores), *[SYLVESTER] * twos]))


def transform(x: Float[Tensor, "*batch n"], *, transpose: bool = False) -> Float[Tensor, "*batch n"]:
    """Multiply rows by an orthogonal matrix: `x @ (H / sqrt(n))`, or `x @ (H.T / sqrt(n))` if `transpose`.

    H is `hadamard(n)`; one undoes the other. Instead of n² multiplications a row takes n times the sum of the orders of
    a few factors, such as 28 + 16 + 32 for n = 14336. Differentiable. The argument is not written to.

    Args:
        x: rows, of any floating dtype.
        transpose: multiply by the transpose, which is the inverse.

    Returns:
        Same shape and dtype as x; computed in float64 if x is float64 and in float32 otherwise.

    Raises:
        InvalidMethod: no Hadamard matrix of order n can be built here; the error names the nearest orders.
    """
    n = x.shape[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y, inner = x.to(dtype), 1
    # A row is a tensor with an axis for every factor, the last one fastest; each is multiplied along its own.
    for factor in reversed(_factors(n)):
        size = len(factor)
        matrix = torch.from_numpy(factor).to(x.device, dtype)
        if inner == 1:
            matrix = matrix / n**0.5
        if transpose:
            matrix = matrix.T
        y = y.reshape(-1, size, inner)
        if inner < NARROW:
            y = (y.mT.reshape(-1, size) @ matrix).reshape(-1, inner, size).mT
        else:
            y = torch.bmm(matrix.T.expand(len(y), -1, -1), y)
        inner *= size
    return y.reshape(x.shape).to(x.dtype)


def random_hadamard(n: int, generator: torch.Generator) -> Float64[Tensor, "n n"]:
    """H diag(s) / sqrt(n) with independent random signs s: orthogonal, every entry ±1 / sqrt(n).

    For R = `random_hadamard(n, ...)`, R v changes the signs of the entries of v first and then mixes them.

    Args:
        n: an order that `order` knows.
        generator: a CPU generator, read for n signs.

    Raises:
        InvalidMethod: no Hadamard matrix of order n can be built here; the error names the nearest orders.
    """
    matrix = hadamard(n)
    signs = 2 * torch.randint(2, (n,), generator=generator) - 1
    return matrix * (signs / torch.tensor(n, dtype=torch.float64).sqrt())


def random_orthogonal(n: int, generator: torch.Generator) -> Float64[Tensor, "n n"]:
    """A uniform (Haar) random orthogonal matrix, for any n: Q of a normal matrix, with the diagonal of R made positive.

    Without that, Q follows the sign convention of LAPACK and is not uniform.

    Args:
        n: rows and columns, >= 1.
        generator: a CPU generator, read for n² normal numbers.

    Raises:
        InvalidMethod: n is not positive.

    Source: F. Mezzadri, How to generate random matrices from the classical compact groups, arXiv:math-ph/0609050.
    """
    if n < 1:
        raise InvalidMethod(f"an orthogonal matrix of order {n}", expected="an order of at least 1")
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    result: Tensor = torch.where(r.diagonal() < 0, -q, q)
    return result


def keeping_mean(q: Float[Tensor, "m m"]) -> Float64[Tensor, "m+1 m+1"]:
    """An orthogonal matrix with one row more that turns as `q` does and leaves the vector of ones where it is.

    A Householder reflection P swaps the last axis and the direction of the ones; P diag(q, 1) P turns what is
    perpendicular to them. The mean of a row, and its spread around the mean, stay what they were. Differentiable.

    Args:
        q: orthogonal.
    """
    basis = mean_free_basis(len(q) + 1)
    result: Tensor = basis @ q.double() @ basis.mT + 1 / (len(q) + 1)
    return result


def mean_free_basis(n: int) -> Float64[Tensor, "n n-1"]:
    """An orthonormal basis of the vectors of n numbers that add up to zero, one a column.

    Args:
        n: >= 2.
    """
    v = torch.full((n,), n**-0.5, dtype=torch.float64)
    v[-1] -= 1
    reflection = torch.eye(n, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v)
    return reflection[:, :-1].contiguous()


def _parts(n: int) -> tuple[tuple[int, ...], int]:
    """Orders of the Paley matrices that n is made of, and k, the power of two that remains."""
    found = order(n)
    cores = _paley_orders(found[0]) if found else None
    if found is None or cores is None:
        above = next(m for m in count(max(n, 0) + 1) if order(m))
        below = next((m for m in range(n - 1, 0, -1) if order(m)), above)
        nearest = f"nearest are {below} and {above}" if below < above else f"smallest is {above}"
        raise InvalidMethod(
            f"no Hadamard matrix of order {n} can be built",
            expected=f"1, 2, or an order from Sylvester's and Paley's constructions; the {nearest}",
            mend="rotate in blocks of an order that divides it, or by a random orthogonal matrix, which has any order",
        )
    return cores, found[1].bit_length() - 1


@lru_cache(maxsize=64)
def _factors(n: int) -> tuple[Matrix, ...]:
    """Matrices whose Kronecker product is H: Paley's, then powers of two up to 64, as equal as can be."""
    cores, twos = _parts(n)
    matrices = [_paley(core) for core in cores]
    if n <= DENSE:
        return (_kronecker([*matrices, *[SYLVESTER] * twos]),)
    rest = twos % 5
    if cores and rest <= 2 and cores[-1] << rest <= FOLDED:
        matrices[-1] = _kronecker([matrices[-1], *[SYLVESTER] * rest])
        twos -= rest
    powers = max(1, (twos + 3) // 5)
    exponents = [(twos + i) // powers for i in range(powers)]
    return (*matrices, *(_kronecker([SYLVESTER] * exponent) for exponent in exponents if exponent))


def _kronecker(matrices: list[Matrix]) -> Matrix:
    """The product in this order, made from its end: the largest product then copies whole rows."""
    return reduce(lambda right, left: np.kron(left, right), reversed(matrices), np.ones((1, 1), dtype=np.int8))


@cache
def _paley_orders(n: int) -> tuple[int, ...] | None:
    """Orders of Paley matrices whose product is n; for 1, none are needed. None if there are no such orders."""
    if n == 1:
        return ()
    if n % 4:
        return None
    if _field(n - 1) or (n % 8 == 4 and _field(n // 2 - 1)):
        return (n,)
    for a in range(4, int(n**0.5) + 1, 4):
        if n % a == 0:
            left, right = _paley_orders(a), _paley_orders(n // a)
            if left and right:
                return left + right
    return None


@cache
def _field(q: int) -> tuple[int, int] | None:
    """(p, e) with pᵉ = q, p an odd prime and e at most 3; None if there are none."""
    for degree in DEGREES:
        p = round(q ** (1 / degree))
        if p > 2 and p**degree == q and all(p % divisor for divisor in range(2, int(p**0.5) + 1)):
            return p, degree
    return None


def _paley(n: int) -> Matrix:
    """Paley's matrix of order n, type I where there is one."""
    field = _field(n - 1)
    if field:
        return np.eye(n, dtype=np.int8) + _bordered(*field, corner=-1)
    field = _field(n // 2 - 1)
    assert field is not None
    symmetric = np.kron(_bordered(*field, corner=1), SYLVESTER)
    return symmetric + np.kron(np.eye(n // 2, dtype=np.int8), np.array([[1, -1], [-1, -1]], dtype=np.int8))


def _bordered(p: int, degree: int, *, corner: int) -> Matrix:
    """Q, the quadratic characters of the differences of all pairs, with a row of ones above and a column beside it."""
    character = _quadratic_character(p, degree)
    elements = np.indices(character.shape).reshape(degree, -1)
    bordered = np.ones((character.size + 1, character.size + 1), dtype=np.int8)
    bordered[0, 0] = 0
    bordered[1:, 0] = corner
    for row, element in zip(bordered[1:, 1:], elements.T, strict=True):
        row[:] = character[tuple((element[:, None] - elements) % p)]
    return bordered


def _quadratic_character(p: int, degree: int) -> Matrix:
    """0 for zero, 1 for squares, -1 for the others; element Σ aᵢ tⁱ of the field is at [a₀, a₁, ...], each modulo p.

    For a degree e above one, tᵉ = t + c with a c that makes tᵉ - t - c irreducible: one that xᵉ - x never is. There is
    one, as xᵉ - x is 0 for both 0 and 1 and so leaves some value out.
    """
    elements = np.indices((p,) * degree).reshape(degree, -1)
    squares = np.zeros((2 * degree - 1, elements.shape[1]), dtype=np.int64)
    for i, j in product(range(degree), repeat=2):
        squares[i + j] += elements[i] * elements[j]
    if degree > 1:
        c = min(set(range(p)) - {(x**degree - x) % p for x in range(p)})
        for power in range(2 * degree - 2, degree - 1, -1):  # t^power = t^(power - e) (t + c)
            squares[power - degree + 1] += squares[power]
            squares[power - degree] += squares[power] * c
    character = np.full((p,) * degree, -1, dtype=np.int8)
    character[tuple(squares[:degree] % p)] = 1
    character[(0,) * degree] = 0
    return character
