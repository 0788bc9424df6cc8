"""What a compiled program sends, on eight devices of this machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.helpers.errors import raises
from train.plan.collectives import (
    Collective,
    Traffic,
    collectives,
    compile_to_text,
    totals,
    with_reduce_scatter,
)
from train.plan.hlo import read_hlo

X = jax.ShapeDtypeStruct((8, 16), jnp.float32)  # 512 bytes
LOCAL, ROW = 512 // 8, 512 // 2  # in parts on all devices; on those of a row of the mesh


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def sent(function, *arguments, **options):
    text = jax.jit(function, **options).lower(*arguments).compile().as_text()
    return collectives(text or "")


SPLIT = P("a", "b")


def on_mesh(body, split=SPLIT, joined=None, shape=None):
    over = mesh(**(shape or {"a": 2, "b": 4}))
    return jax.shard_map(
        body, mesh=over, in_specs=split, out_specs=joined or split, check_vma=False
    )


around = [(i, (i + 1) % 4) for i in range(4)]
over = jax.lax.psum

PRIMITIVES = {
    "psum": (lambda x: over(x, "b"), ("all-reduce", LOCAL, 4), 2 * LOCAL * 3 // 4),
    "psum of the other axis": (lambda x: over(x, "a"), ("all-reduce", LOCAL, 2), LOCAL),
    "psum of both": (lambda x: over(x, ("a", "b")), ("all-reduce", LOCAL, 8), 2 * LOCAL * 7 // 8),
    "all_gather": (lambda x: jax.lax.all_gather(x, "b"), ("all-gather", ROW, 4), ROW * 3 // 4),
    "psum_scatter": (
        lambda x: jax.lax.psum_scatter(x, "b", tiled=True),
        ("reduce-scatter", LOCAL, 4),
        LOCAL * 3 // 4,
    ),
    "ppermute": (
        lambda x: jax.lax.ppermute(x, "b", around), ("collective-permute", LOCAL, 4), LOCAL,
    ),
    "all_to_all": (
        lambda x: jax.lax.all_to_all(x, "b", 1, 0, tiled=True),
        ("all-to-all", LOCAL, 4),
        LOCAL * 3 // 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRIMITIVES)
def test_each_primitive_sends_what_its_ring_does(name: str):
    body, (kind, payload, group), bytes_sent = PRIMITIVES[name]
    (found,) = sent(on_mesh(body, joined=P()), X)
    assert found == Collective(kind, payload, group, times=1)
    assert found.sent_bytes == bytes_sent


def test_loops_multiply():
    def turns(n, body):
        return lambda x: jax.lax.scan(lambda x, _: (jnp.sin(body(x)), None), x, length=n)[0]

    found = sent(on_mesh(turns(5, turns(3, lambda x: over(x, "b")))), X)
    assert found == [Collective("all-reduce", LOCAL, 4, times=15)]
    assert totals(found) == {
        "all-reduce": Traffic(15, 15 * LOCAL, 15 * found[0].sent_bytes),
    }


def test_a_condition_counts_as_its_dearest_branch():
    def either(x):
        def twice(x):
            return over(over(x, "a") * x, "b")

        return jax.lax.cond(x.sum() > 0, lambda x: over(x, "b"), twice, x)

    assert [one.group_size for one in sent(on_mesh(either), X)] == [2, 4]


def test_a_loop_of_unknown_turns_is_a_sentence_or_counts_as_told():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: over(x, "b"), x)

    text = jax.jit(on_mesh(until)).lower(X).compile().as_text() or ""
    with raises(ValueError, 96, "turns=N"):
        collectives(text)
    assert collectives(text, turns=7) == [Collective("all-reduce", LOCAL, 4, times=7)]


def test_one_device_sends_nothing():
    assert sent(lambda x: jax.lax.scan(lambda x, _: (x @ x.T @ x, None), x, length=3)[0], X) == []


WEIGHTS = {
    "up": jax.ShapeDtypeStruct((16, 24), jnp.float32),
    "down": jax.ShapeDtypeStruct((24, 16), jnp.bfloat16),
}
WEIGHT_BYTES = 16 * 24 * 4 + 24 * 16 * 2


def gradient(weights, x):
    def loss(weights):
        hidden = (x @ weights["up"]).astype(jnp.bfloat16)
        return jnp.square((hidden @ weights["down"]).astype(jnp.float32)).sum()

    return jax.grad(loss)(weights)


def laid(array, where, *axes):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(where, P(*axes)))


def test_a_data_parallel_gradient_sums_each_parameter_once():
    where = mesh(data=8)
    whole = {name: laid(array, where) for name, array in WEIGHTS.items()}
    options = {"out_shardings": {name: array.sharding for name, array in whole.items()}}
    found = sent(gradient, whole, laid(X, where, "data"), **options)
    assert {(one.kind, one.group_size, one.times) for one in found} == {("all-reduce", 8, 1)}
    # XLA for CPU sums bfloat16 in float32
    assert sum(one.payload_bytes for one in found) == WEIGHT_BYTES + 24 * 16 * 2
    assert sum(one.scattered_bytes for one in found) == 0


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [{"data": 8}, {"tensor": 2, "data": 4}, {"data": 4, "tensor": 2}])
def test_a_fully_sharded_gradient_is_a_reduce_scatter_in_disguise(shape: dict, axis: int):
    """Under a scan over layers, as in a model: slices inside of fusions, places worked out before the loop."""
    where, layers = mesh(**shape), 3
    parts = (None, *(["data" if i == axis else None for i in range(2)]))
    weights = laid(jax.ShapeDtypeStruct((layers, 16, 16), jnp.float32), where, *parts)

    def loss(weights, x):
        def layer(x, weight):
            weight = jax.lax.with_sharding_constraint(weight, NamedSharding(where, P()))
            x = jnp.tanh(x @ weight)
            return jax.lax.with_sharding_constraint(x, NamedSharding(where, P("data"))), None

        return jnp.square(jax.lax.scan(layer, x, weights)[0]).sum()

    found = sent(jax.grad(loss), weights, laid(X, where, "data"), out_shardings=weights.sharding)
    sums = [one for one in found if one.kind == "all-reduce"]
    assert sums == [Collective("all-reduce", 16 * 16 * 4, shape["data"], layers, 16 * 16 * 4)]
    (scattered,) = with_reduce_scatter(sums)
    assert scattered == Collective("reduce-scatter", 16 * 16 * 4, shape["data"], layers)
    assert 2 * scattered.sent_bytes == sums[0].sent_bytes


def part(x, axis, size, along=0):
    place = jax.lax.axis_index(axis) * (x.shape[along] // size)
    return jax.lax.dynamic_slice_in_dim(x, place, x.shape[along] // size, along)


@pytest.mark.parametrize(
    ("body", "scattered"),
    [
        (lambda x: part(over(x, "a"), "a", 2), True),
        (lambda x: part(over(x, "a").T, "a", 2).T, True),
        (lambda x: part(over(x, "a"), "b", 2), False),  # both of a group read the same
        (lambda x: part(over(x, "a"), "a", 4), False),  # not all that there is
        (lambda x: jax.lax.dynamic_slice_in_dim(over(x, "a"), 4, 4), False),
        (lambda x: over(x, "a"), False),
        (lambda x: (lambda s: part(s, "a", 2) + s.sum())(over(x, "a")), False),
        (lambda x: (lambda s: part(s, "a", 2) @ part(s, "a", 2, 1))(over(x, "a")), False),
    ],
)
def test_a_sum_is_scattered_only_if_each_device_reads_another_part_and_no_more(
    body, scattered: bool
):
    shape = {"a": 2, "b": 2, "c": 2}
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    (found, *_) = sent(on_mesh(body, P(), P(("a", "b", "c")), shape), x)
    assert (found.kind, found.payload_bytes, found.group_size) == ("all-reduce", 256, 2)
    assert (found.scattered_bytes, found.undecided_bytes) == (256 * scattered, 0)


def test_what_is_not_scattered_stays_an_all_reduce():
    both = Collective("all-reduce", 800, 8, times=3, scattered_bytes=320)
    rest, scattered = with_reduce_scatter([both])
    assert rest == Collective("all-reduce", 480, 8, times=3)
    assert scattered == Collective("reduce-scatter", 320, 8, times=3)
    gather = Collective("all-gather", 80, 8)
    assert with_reduce_scatter([gather]) == [gather]


def test_the_dumped_program_has_its_tables_whole():
    table = np.arange(16, dtype=np.int32) ** 2

    @jax.jit
    def look_up(i):
        return jnp.asarray(table)[i]

    compiled, text = compile_to_text(look_up.lower(jax.ShapeDtypeStruct((), jnp.int32)))
    short = compiled.as_text() or ""
    assert "{...}" in short
    assert "196, 225}" in text
    assert read_hlo(text).computations.keys() == read_hlo(short).computations.keys()
    assert compiled(jnp.int32(3)) == 9
