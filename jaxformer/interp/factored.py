"""Low-rank matrices, kept as their two factors: the circuits of heads, which are much narrower than the stream."""

import dataclasses
from typing import Any, NamedTuple, Union

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxformer.model.stream import upcast


class SVD(NamedTuple):
    """U · diag(S) · Vh, the largest singular value first."""

    U: Float[Array, "*leading row direction"]
    S: Float[Array, "*leading direction"]
    Vh: Float[Array, "*leading direction column"]


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """The matrix A · B, stored as its factors; `.AB` computes it.

    The norm, trace, singular values and eigenvalues come from rank × rank matrices, and a product with another matrix
    changes one factor only. It is a pytree of A and B, so jit, vmap and grad take it as an argument. Leading axes
    (layers, heads) index several matrices; those of A and B are broadcast.

    Raises:
        ValueError: the last axis of A differs from the last but one of B.

    >>> tall = jnp.array([[1.0], [2.0], [3.0]])
    >>> rank_one = FactoredMatrix(tall, tall.T)
    >>> rank_one.shape, float(rank_one.trace), bool(jnp.isclose(rank_one.norm(), 14.0))
    ((3, 3), 14.0, True)
    >>> rank_one @ jnp.array([1.0, 0.0, 0.0])
    Array([1., 2., 3.], dtype=float32)
    """

    A: Float[Array, "*#leading row rank"]
    B: Float[Array, "*#leading _rank column"]  # __post_init__ checks the rank, with a clear message

    __array_ufunc__ = (
        None  # so that NumPy leaves `array @ factored` and `array * factored` to this class
    )

    def __post_init__(self) -> None:
        a, b = self.A.shape, self.B.shape
        if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
            raise ValueError(
                f"A of shape {a} and B of shape {b} have no product; A's last axis must be B's last but one"
            )
        leading = jnp.broadcast_shapes(a[:-2], b[:-2])
        object.__setattr__(self, "A", jnp.broadcast_to(self.A, (*leading, *a[-2:])))
        object.__setattr__(self, "B", jnp.broadcast_to(self.B, (*leading, *b[-2:])))

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        """Return the factors with their names."""
        names = jax.tree_util.GetAttrKey("A"), jax.tree_util.GetAttrKey("B")
        return tuple(zip(names, (self.A, self.B), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _: None, factors: Any) -> "FactoredMatrix":
        """Rebuild it without the constructor: JAX also builds trees whose leaves are not arrays, such as vmap axes."""
        tree = object.__new__(cls)
        for name, factor in zip(("A", "B"), factors, strict=True):
            object.__setattr__(tree, name, factor)
        return tree

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the product: leading axes, rows, columns."""
        return *self.A.shape[:-1], self.B.shape[-1]

    @property
    def ndim(self) -> int:
        """The number of axes of the product."""
        return self.A.ndim

    @property
    def AB(self) -> Float[Array, "*leading row column"]:
        """The product, as an array."""
        return self.A @ self.B

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose of the last two axes."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __matmul__(self, other: Any) -> Any:
        """Multiply with a vector (a vector) or a matrix, factored or not (a FactoredMatrix of the smallest rank)."""
        if isinstance(other, FactoredMatrix):
            between = self.B @ other.A
            if between.shape[-2] <= between.shape[-1]:
                return FactoredMatrix(self.A, between @ other.B)
            return FactoredMatrix(self.A @ between, other.B)
        other = jnp.asarray(other)
        if other.ndim == 1:
            return jnp.matvec(self.A, self.B @ other)
        if self.B.shape[-1] < self.B.shape[-2]:
            return FactoredMatrix(self.AB, other)
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Any) -> Any:
        """Return an array times this matrix: (Mᵀ · otherᵀ)ᵀ."""
        other = jnp.asarray(other)
        return self.T @ other if other.ndim == 1 else (self.T @ other.mT).T

    def __mul__(self, scalar: Any) -> "FactoredMatrix":
        """Multiply every entry by one number.

        Raises:
            ValueError: an array of several numbers, which cannot go into one factor.
        """
        if jnp.ndim(scalar):
            raise ValueError(
                f"a FactoredMatrix is multiplied by one number, not by an array of shape "
                f"{jnp.shape(scalar)}; for a matrix product write @"
            )
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> Union["FactoredMatrix", Array]:
        """Index the product: leading axes, then rows, then columns.

        An integer row or column drops that axis, as with an array. Arrays of rows and of columns have one axis and
        index independently: both together give a submatrix. A traced integer out of range is clamped.

        Raises:
            IndexError: more indices than axes, None, an array of rows or columns with several axes, or an integer
                out of range. (An IndexError, because that is what ends a loop over the first axis.)
        """
        *leading, row, column = self._by_axis(index if isinstance(index, tuple) else (index,))
        A, B = self.A[tuple(leading)], self.B[tuple(leading)]
        A = A[..., row, None, :] if _drops_axis(row) else A[..., row, :]
        B = B[..., column, None] if _drops_axis(column) else B[..., column]
        dropped = [axis for axis, item in ((-2, row), (-1, column)) if _drops_axis(item)]
        return jnp.squeeze(A @ B, axis=dropped) if dropped else FactoredMatrix(A, B)

    def norm(self) -> Float[Array, "*leading"]:
        """Return the Frobenius norm: ‖AB‖² = Σ (AᵀA) ∘ (BBᵀ).

        The terms of the sum may cancel: a norm below about √ε·‖A‖·‖B‖ is lost in rounding. Its derivative at a
        matrix of zeros is 0.
        """
        A, B = upcast(self.A), upcast(self.B)
        return root(jnp.sum((A.mT @ A) * (B @ B.mT), axis=(-2, -1)))

    def svd(self) -> SVD:
        """Return the singular value decomposition, in O((rows + columns)·rank²).

        A = Q·R and Bᵀ = Q'·R', so AB = Q·(R·R'ᵀ)·Q'ᵀ, and only the small matrix R·R'ᵀ is decomposed. The sign of each
        pair of singular vectors is arbitrary.
        """
        left, R = jnp.linalg.qr(upcast(self.A))
        right, L = jnp.linalg.qr(upcast(self.B).mT)
        U, S, Vh = jnp.linalg.svd(R @ L.mT, full_matrices=False)
        return SVD(left @ U, S, Vh @ right.mT)

    @property
    def U(self) -> Float[Array, "*leading row direction"]:
        """The left singular vectors, as columns: the directions that the matrix reads from a row vector."""
        return self.svd().U

    @property
    def S(self) -> Float[Array, "*leading direction"]:
        """The singular values, the largest first."""
        return self.svd().S

    @property
    def Vh(self) -> Float[Array, "*leading direction column"]:
        """The right singular vectors, as rows: the directions that the matrix writes."""
        return self.svd().Vh

    @property
    def eigenvalues(self) -> Complex[Array, "*leading eigenvalue"]:
        """The eigenvalues of a square matrix, as many as its size or its rank, the smaller; all others are 0.

        If AB·x = λx, then BA·(Bx) = λ(Bx): AB and BA have the same nonzero eigenvalues; the smaller is decomposed.
        JAX has no eigenvalues of nonsymmetric matrices on TPU; on GPU they need the CPU or a recent CUDA.

        Raises:
            ValueError: a matrix that is not square.
        """
        self._check_square("eigenvalues")
        A, B = upcast(self.A), upcast(self.B)
        return jnp.linalg.eigvals(B @ A if B.shape[-2] < B.shape[-1] else A @ B)

    @property
    def trace(self) -> Float[Array, "*leading"]:
        """The sum of the diagonal of a square matrix, which is the sum of its eigenvalues."""
        self._check_square("trace")
        return jnp.sum(upcast(self.A) * upcast(self.B).mT, axis=(-2, -1))

    def _check_square(self, what: str) -> None:
        if self.shape[-2] != self.shape[-1]:
            raise ValueError(f"a matrix of shape {self.shape[-2:]} has no {what}: it is not square")

    def _by_axis(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return one index for each axis, with slices for the ellipsis and for missing indices."""
        given = [item for item in items if item is not Ellipsis]
        new_axis = any(item is None for item in given)
        if len(given) > self.ndim or len(items) > len(given) + 1 or new_axis:
            raise IndexError(
                f"{items} does not index the axes of a FactoredMatrix of shape {self.shape}"
            )
        dots = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
        missing = (slice(None),) * (self.ndim - len(given))
        by_axis: Any = (*items[:dots], *missing, *items[dots + 1 :])
        for item, size in zip(by_axis, self.shape, strict=True):
            fixed = _drops_axis(item) and not isinstance(item, jax.core.Tracer)
            if fixed and not -size <= int(item) < size:
                raise IndexError(f"index {item} is outside an axis of {size} in shape {self.shape}")
        for item in by_axis[-2:]:
            if not isinstance(item, slice) and jnp.ndim(item) > 1:
                raise IndexError(
                    f"rows or columns of shape {jnp.shape(item)}; give an array of one axis"
                )
        return by_axis


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the square root, or 0 for a number that rounding made negative; its derivative at 0 is 0.

    >>> root(jnp.array([4.0, 0.0, -1e-9]))
    Array([2., 0., 0.], dtype=float32)
    """
    zero = square <= 0  # false for NaN, which stays NaN
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def quotient(
    numerator: Float[Array, "..."], denominator: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return numerator / denominator, or 0 where the denominator is 0.

    >>> quotient(jnp.array([1.0, 0.0]), jnp.array([4.0, 0.0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    zero = denominator == 0  # false for NaN, which stays NaN
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))


def _drops_axis(item: Any) -> bool:
    """Whether an index is one integer, traced or not."""
    return not isinstance(item, slice) and jnp.ndim(item) == 0
