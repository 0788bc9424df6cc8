"""A FactoredMatrix equals its product: every test compares it with the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.interp.factored import FactoredMatrix, quotient
from tests.helpers.errors import raises

SHAPES = {
    "tall": ((), 6, 2, 4), "square": ((2, 3), 5, 2, 5), "wide inside": ((3,), 3, 4, 3), "a row": ((), 1, 2, 4)
}  # fmt: skip
"""Leading axes, rows, inner axis, columns."""


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def factored(leading, d, r, e, seed: int = 0) -> FactoredMatrix:
    A, B = normal(*leading, d, r, seed=2 * seed), normal(*leading, r, e, seed=2 * seed + 1)
    return FactoredMatrix(A, B)


def same(found, dense, atol: float = 1e-12) -> None:
    np.testing.assert_allclose(getattr(found, "AB", found), dense, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_norm_svd_and_indexing_equal_the_dense_matrix_s(name: str, x64):
    leading, d, r, e = SHAPES[name]
    matrix = factored(leading, d, r, e)
    dense = np.asarray(matrix.A) @ np.asarray(matrix.B)
    assert (matrix.shape, matrix.ndim) == (dense.shape, dense.ndim)
    norm, svd, transposed = jax.jit(lambda m: (m.norm(), m.svd(), m.T))(matrix)
    same(norm, np.linalg.norm(dense, axis=(-2, -1)))
    same(transposed, np.swapaxes(dense, -2, -1))
    values = np.linalg.svd(dense, compute_uv=False)
    kept = min(d, r, e)
    assert svd.S.shape == (*leading, kept)
    same(svd.S, values[..., :kept])
    same(np.zeros(1), values[..., kept:].max(initial=0.0))  # no singular value is left out
    same((svd.U * svd.S[..., None, :]) @ svd.Vh, dense)
    for gram in (svd.U.mT @ svd.U, svd.Vh @ svd.Vh.mT):
        same(gram, np.broadcast_to(np.eye(kept), (*leading, kept, kept)))
    for part, its_own in zip((matrix.U, matrix.S, matrix.Vh), matrix.svd(), strict=True):
        np.testing.assert_array_equal(part, its_own)


@pytest.mark.parametrize("name", ["square", "wide inside"])
def test_eigenvalues_and_trace_of_a_square_matrix(name: str, x64):
    leading, d, r, e = SHAPES[name]
    matrix = factored(leading, d, r, e)
    dense = np.asarray(matrix.A) @ np.asarray(matrix.B)
    same(matrix.trace, np.trace(dense, axis1=-2, axis2=-1))
    found = np.asarray(matrix.eigenvalues)
    assert found.shape == (*leading, min(d, r))
    missing = np.zeros((*leading, d - found.shape[-1]))
    expected = np.sort_complex(np.linalg.eigvals(dense).round(9))
    same(np.sort_complex(np.concatenate([found, missing], -1).round(9)), expected, atol=1e-8)


def test_products_on_both_sides_keep_the_smaller_inner_axis(x64):
    matrix, narrow = factored((2, 3), 5, 2, 6), factored((2, 3), 6, 1, 4, seed=1)
    dense = np.asarray(matrix.AB)
    for left, right, inner in [
        (matrix, narrow, 1),
        (narrow.T, matrix.T, 1),
        (matrix, normal(6, 3), 2),
        (matrix, normal(2, 3, 6, 1), 2),
        (normal(3, 5), matrix, 2),
        (np.asarray(normal(3, 5)), matrix, 2),  # NumPy leaves it to FactoredMatrix
        (matrix @ normal(6, 1), normal(1, 7), 1),  # through one column, so the rank is 1
        (normal(7, 1), normal(1, 5) @ matrix, 1),
    ]:
        product = left @ right
        assert isinstance(product, FactoredMatrix)
        assert product.A.shape[-1] == product.B.shape[-2] == inner
        left, right = (np.asarray(getattr(side, "AB", side)) for side in (left, right))
        same(product, left @ right)
    same(matrix @ normal(6), dense @ np.asarray(normal(6)))
    same(normal(5) @ matrix, np.asarray(normal(5)) @ dense)
    same(2.5 * matrix, 2.5 * dense)
    same(matrix * jnp.asarray(-0.5), -0.5 * dense)


INDICES = [
    1, -1, (0, 2), np.s_[:, 1], np.s_[..., 3], np.s_[..., 3, :], np.s_[..., 1:4, ::2], np.s_[1, 0, 4, 2],
    np.s_[:, :, -1, -1], np.s_[0, ..., -2], np.s_[...], np.s_[jnp.array([1, 0, 1])],
    np.s_[..., jnp.array([0, 0, 4]), :], np.s_[jnp.asarray(1), ..., jnp.asarray(2)],
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_equals_indexing_the_dense_matrix(index, x64):
    matrix = factored((2, 3), 5, 2, 6)
    taken, dense = matrix[index], matrix.AB[index]
    assert taken.shape == dense.shape
    same(taken, dense)


def test_rows_and_columns_are_indexed_independently(x64):
    matrix = factored((), 5, 2, 6)
    rows, columns = jnp.array([4, 0]), jnp.array([1, 1, 5])
    same(matrix[rows, columns], np.asarray(matrix.AB)[np.ix_([4, 0], [1, 1, 5])])
    same(jax.jit(lambda m, i: m[i])(matrix, 3), matrix.AB[3])


def test_a_loop_over_the_first_axis_ends():
    assert [m.shape for m in factored((2,), 3, 1, 4)] == [(3, 4)] * 2


def test_leading_axes_index_several_matrices(x64):
    """The same numbers come from vmap; factors with different leading axes are broadcast."""
    matrix = factored((2, 3), 5, 2, 5)
    numbers = lambda m: (m.norm(), m.svd().S, m.trace, (m @ m)[0], (m.T * 2.0).AB)  # noqa: E731
    mapped = jax.jit(jax.vmap(jax.vmap(numbers)))(matrix)
    for found, one_by_one in zip(mapped, numbers(matrix)[:3], strict=False):
        same(found, one_by_one)
    same(mapped[3], (np.asarray(matrix.AB) @ np.asarray(matrix.AB))[..., 0, :])
    same(mapped[4], 2 * matrix.T.AB)
    shared = FactoredMatrix(matrix.A, matrix.B[0, 0])
    same(shared[1, 2], matrix.A[1, 2] @ matrix.B[0, 0])


def test_it_is_a_tree_of_two_named_arrays():
    matrix = factored((2,), 3, 1, 4)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(matrix)]
    assert paths == [".A", ".B"]
    axes = jax.tree.unflatten(jax.tree.structure(matrix), [0, None])
    mapped = jax.vmap(lambda m: m.AB, in_axes=(axes,))
    alone = jax.tree.unflatten(jax.tree.structure(matrix), [matrix.A, matrix.B[1]])
    np.testing.assert_allclose(mapped(alone), matrix.A @ matrix.B[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["square", "wide inside"])
def test_its_norm_has_the_dense_matrix_s_derivative(name: str, x64):
    matrix = factored(*SHAPES[name])
    found = jax.grad(lambda m: m.norm().sum())(matrix)
    expected = jax.grad(lambda m: jnp.sqrt(jnp.square(m.AB).sum((-2, -1))).sum())(matrix)
    same(found.A, expected.A)
    same(found.B, expected.B)
    at_zero = jax.grad(lambda m: m.norm().sum())(matrix * 0.0)
    np.testing.assert_array_equal(at_zero.A, 0.0)


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        (lambda m: FactoredMatrix(m.A, m.A), ValueError, ("A", "B", "(3, 1)")),
        (lambda m: m * jnp.ones(3), ValueError, ("(3,)", "@")),
        (lambda m: m.trace, ValueError, ("(3, 4)", "trace")),
        (lambda m: m.eigenvalues, ValueError, ("(3, 4)", "eigenvalues")),
        (lambda m: m[3], IndexError, (3, "(3, 4)")),
        (lambda m: m[:, -5], IndexError, (-5, "(3, 4)")),
        (lambda m: m[0, 0, 0], IndexError, ("(0, 0, 0)", "(3, 4)")),
        (lambda m: m[None], IndexError, ("(None,)", "(3, 4)")),
        (lambda m: m[jnp.int32(7)], IndexError, (7, "(3, 4)")),
        (lambda m: m[jnp.array([[0, 1]])], IndexError, ("(1, 2)",)),
    ],
)
def test_wrong_operands_and_indices_are_refused(wrong, error, named: tuple):
    with raises(error, *named):
        wrong(factored((), 3, 1, 4))


def test_nan_stays_nan():
    bad = FactoredMatrix(jnp.array([[jnp.nan], [1.0]]), jnp.ones((1, 2)))
    assert jnp.isnan(bad.norm())
    assert jnp.isnan(quotient(jnp.array(1.0), jnp.array(jnp.nan)))
    assert jnp.isnan(quotient(jnp.array(jnp.nan), jnp.array(2.0)))


def test_numbers_of_bfloat16_factors_are_float32():
    matrix = jax.tree.map(lambda x: x.astype(jnp.bfloat16), factored((), 5, 2, 5))
    for number in (matrix.norm(), matrix.S, matrix.trace, matrix.eigenvalues.real):
        assert number.dtype == jnp.float32
