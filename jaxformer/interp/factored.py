"""A product of two matrices that is never formed: what a head does to a stream far wider than itself."""

import dataclasses
from typing import Any, NamedTuple, Union

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxformer.model.stream import widened


class SVD(NamedTuple):
    """U · diag(S) · Vh, the largest singular value first; p is the least of d, r and e."""

    U: Float[Array, "*l d p"]
    S: Float[Array, "*l p"]
    Vh: Float[Array, "*l p e"]


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """The matrix A · B, kept as its factors; `.AB` forms it.

    All else costs as much as the factors do: norm, trace, singular values and eigenvalues come from r × r
    matrices, and a product with another matrix goes into the factor that it meets. It is a pytree of A and B,
    so that jit, vmap and grad take it as an argument; axes in front (layers, heads) are as many matrices, and
    A's and B's are broadcast to one another.

    Raises:
        ValueError: factors whose inner axes differ.

    >>> tall = jnp.array([[1.0], [2.0], [3.0]])
    >>> rank_one = FactoredMatrix(tall, tall.T)
    >>> rank_one.shape, float(rank_one.trace), bool(jnp.isclose(rank_one.norm(), 14.0))
    ((3, 3), 14.0, True)
    >>> rank_one @ jnp.array([1.0, 0.0, 0.0])
    Array([1., 2., 3.], dtype=float32)
    """

    A: Float[Array, "*#l d r"]
    B: Float[Array, "*#l _r e"]  # unchecked here, for __post_init__ says it in words

    __array_ufunc__ = None  # so that numpy leaves `array @ factored` and `array * factored` to us

    def __post_init__(self) -> None:
        a, b = self.A.shape, self.B.shape
        if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
            raise ValueError(
                f"A of shape {a} and B of shape {b} are no product; A's last axis is B's last but one"
            )
        leading = jnp.broadcast_shapes(a[:-2], b[:-2])
        object.__setattr__(self, "A", jnp.broadcast_to(self.A, (*leading, *a[-2:])))
        object.__setattr__(self, "B", jnp.broadcast_to(self.B, (*leading, *b[-2:])))

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        """The factors, by name."""
        names = jax.tree_util.GetAttrKey("A"), jax.tree_util.GetAttrKey("B")
        return tuple(zip(names, (self.A, self.B), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _: None, factors: Any) -> "FactoredMatrix":
        """Past the constructor: JAX also rebuilds trees of things that are no arrays, as axes to vmap over."""
        tree = object.__new__(cls)
        for name, factor in zip(("A", "B"), factors, strict=True):
            object.__setattr__(tree, name, factor)
        return tree

    @property
    def shape(self) -> tuple[int, ...]:
        """As the product's: leading axes, rows, columns."""
        return *self.A.shape[:-1], self.B.shape[-1]

    @property
    def ndim(self) -> int:
        """The number of axes of the product."""
        return self.A.ndim

    @property
    def AB(self) -> Float[Array, "*l d e"]:
        """The matrix itself: d × e numbers."""
        return self.A @ self.B

    @property
    def T(self) -> "FactoredMatrix":
        """Rows for columns; leading axes stay."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __matmul__(self, other: Any) -> Any:
        """With a vector a vector; with a matrix, factored or not, a FactoredMatrix.

        Its inner axis is the smaller of those that the two factors offer.
        """
        if isinstance(other, FactoredMatrix):
            between = self.B @ other.A
            if between.shape[-2] <= between.shape[-1]:
                return FactoredMatrix(self.A, between @ other.B)
            return FactoredMatrix(self.A @ between, other.B)
        other = jnp.asarray(other)
        if other.ndim == 1:
            return jnp.einsum("...dr,...r->...d", self.A, self.B @ other)
        if self.B.shape[-1] < self.B.shape[-2]:
            return FactoredMatrix(self.AB, other)
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Any) -> Any:
        """An array times this matrix: (Mᵀ · otherᵀ)ᵀ."""
        other = jnp.asarray(other)
        return self.T @ other if other.ndim == 1 else (self.T @ other.mT).T

    def __mul__(self, scalar: Any) -> "FactoredMatrix":
        """Every entry times one number.

        Raises:
            ValueError: an array of several, which would have to be spread over both factors.
        """
        if jnp.ndim(scalar):
            raise ValueError(
                f"a FactoredMatrix is multiplied by one number, not by an array of shape "
                f"{jnp.shape(scalar)}; for a matrix product write @"
            )
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> Union["FactoredMatrix", Array]:
        """What the same index takes from the product: leading axes first, then rows, then columns.

        An integer in the place of the row or the column leaves a vector (both: a number), as with an array.
        Arrays of rows and of columns have one axis and choose each for itself, apart from arrays elsewhere: of
        both, a submatrix. Inside traced code an integer outside takes the nearest.

        Raises:
            IndexError: more indices than axes, None, rows or columns in an array of several axes, or an integer
                outside. (Python's own error here, for it is what ends a loop over the first axis.)
        """
        *leading, row, column = self._by_axis(index if isinstance(index, tuple) else (index,))
        A = self.A[tuple(leading)][..., row, :]
        B = self.B[tuple(leading)][..., :, column]
        d, e = ("" if _drops_axis(item) else letter for item, letter in ((row, "d"), (column, "e")))
        if d and e:
            return FactoredMatrix(A, B)
        return jnp.einsum(f"...{d}r,...r{e}->...{d}{e}", A, B)

    def norm(self) -> Float[Array, "*l"]:
        """The root of the sum of all squared entries: ‖AB‖² = Σ (AᵀA) ∘ (BBᵀ).

        A sum of products that may cancel: a norm below about √ε·‖A‖·‖B‖ is lost in rounding. Its
        derivative at a matrix of zeros is given as 0.
        """
        A, B = widened(self.A), widened(self.B)
        return root(jnp.sum((A.mT @ A) * (B @ B.mT), axis=(-2, -1)))

    def svd(self) -> SVD:
        """The singular value decomposition, from those of two thin factors: O((d + e)·r²).

        A = Q·R and Bᵀ = Q'·R', so AB = Q·(R·R'ᵀ)·Q'ᵀ, and only the small matrix between is decomposed. A
        pair of singular vectors is determined up to its common sign.
        """
        left, R = jnp.linalg.qr(widened(self.A))
        right, L = jnp.linalg.qr(widened(self.B).mT)
        U, S, Vh = jnp.linalg.svd(R @ L.mT, full_matrices=False)
        return SVD(left @ U, S, Vh @ right.mT)

    @property
    def U(self) -> Float[Array, "*l d p"]:
        """The left singular vectors, as columns; with a row matrix on the left, what is read."""
        return self.svd().U

    @property
    def S(self) -> Float[Array, "*l p"]:
        """The singular values, the largest first."""
        return self.svd().S

    @property
    def Vh(self) -> Float[Array, "*l p e"]:
        """The right singular vectors, as rows; with a row matrix on the left, what is written."""
        return self.svd().Vh

    @property
    def eigenvalues(self) -> Complex[Array, "*l q"]:
        """The eigenvalues of a square matrix: q, the lesser of d and r, of them; all others are 0.

        If AB·x = λx, then BA·(Bx) = λ(Bx): AB and BA share all but zeros, and the smaller one is decomposed.
        JAX has the eigenvalues of an unsymmetric matrix on CPU, and on GPU by calling the CPU or a recent
        CUDA; on TPU it has none.

        Raises:
            ValueError: a matrix that is not square.
        """
        self._check_square("eigenvalues")
        A, B = widened(self.A), widened(self.B)
        return jnp.linalg.eigvals(B @ A if B.shape[-2] < B.shape[-1] else A @ B)

    @property
    def trace(self) -> Float[Array, "*l"]:
        """The sum of the diagonal, and of the eigenvalues.

        Raises:
            ValueError: a matrix that is not square.
        """
        self._check_square("trace")
        return jnp.einsum("...dr,...rd->...", widened(self.A), widened(self.B))

    def _check_square(self, what: str) -> None:
        if self.shape[-2] != self.shape[-1]:
            raise ValueError(
                f"a matrix of shape {self.shape[-2:]} has no {what}; it must be square"
            )

    def _by_axis(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        """One index for each axis, the ellipsis and what is left out written as whole slices."""
        given = [item for item in items if item is not Ellipsis]
        new_axis = any(item is None for item in given)
        if len(given) > self.ndim or len(items) > len(given) + 1 or new_axis:
            raise IndexError(
                f"{items} does not index the axes of a FactoredMatrix of shape {self.shape}"
            )
        dots = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
        rest = (slice(None),) * (self.ndim - len(given))
        by_axis = (*items[:dots], *rest, *items[dots + 1 :])
        for item, size in zip(by_axis, self.shape, strict=True):
            if isinstance(item, slice | jax.core.Tracer) or jnp.ndim(item):
                continue
            if not -size <= int(item) < size:
                raise IndexError(f"index {item} is outside an axis of {size} in shape {self.shape}")
        for item in by_axis[-2:]:
            if not isinstance(item, slice) and jnp.ndim(item) > 1:
                raise IndexError(
                    f"rows or columns of shape {jnp.shape(item)}; give an array of one axis"
                )
        return by_axis


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, of rounding's negative numbers 0; its derivative at 0 is given as 0, not infinity.

    >>> root(jnp.array([4.0, 0.0, -1e-9]))
    Array([2., 0., 0.], dtype=float32)
    """
    none = square <= 0  # not of NaN, which stays
    return jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, square)))


def quotient(part: Float[Array, "..."], whole: Float[Array, "..."]) -> Float[Array, "..."]:
    """The part's share of the whole, and 0 of a whole that is 0.

    >>> quotient(jnp.array([1.0, 0.0]), jnp.array([4.0, 0.0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    none = whole == 0  # not of NaN, which stays
    return jnp.where(none, 0.0, part / jnp.where(none, 1.0, whole))


def _drops_axis(item: Any) -> bool:
    """An integer, traced or not, takes one place and leaves no axis for it."""
    return not isinstance(item, slice) and jnp.ndim(item) == 0
