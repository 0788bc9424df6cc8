"""What a compiled program sends: on eight devices of this machine, and in lines of HLO that CPU does not print."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train.collectives import (
    Collective,
    Kind,
    Traffic,
    collectives,
    compile_to_text,
    totals,
    with_reduce_scatter,
)
from train.hlo import device_groups, read_hlo

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
    with pytest.raises(ValueError, match="send each other 96 bytes a turn; give turns=N"):
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


def hlo(*lines: str, before: str = "", partitions: int = 8) -> str:
    """A program that is given f32[32], 128 bytes."""
    body = "\n".join(f"  {line}" for line in ("%x = f32[32]{0} parameter(0)", *lines))
    sums = "%add (a: f32[], b: f32[]) -> f32[] {\n  %a = f32[] parameter(0)\n}\n"
    head = f"HloModule jit_f, num_partitions={partitions}\n\n{sums}\n{before}\n"
    return f"{head}ENTRY %main (x: f32[32]) -> f32[32] {{\n{body}\n}}\n"


def reduced(groups: str, partitions: int = 8) -> str:
    line = f"ROOT %r = f32[32]{{0}} all-reduce(%x), {groups}to_apply=%add"
    return hlo(line, partitions=partitions)


PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7]]
ACROSS = [[0, 4], [1, 5], [2, 6], [3, 7]]
FORMS = {
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}, ": PAIRS,
    "replica_groups=[4,2]<=[8], ": PAIRS,
    "replica_groups=[4,2]<=[2,4]T(1,0), ": ACROSS,
    "replica_groups=[2,4]<=[4,2]T(1,0), ": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups=[4,2]<=[2,2,2]T(2,1,0), ": [[0, 4], [2, 6], [1, 5], [3, 7]],
    "replica_groups=mesh['a'=2,'b'=4] {'a'}, ": ACROSS,
    "replica_groups=mesh[a=2,b=4] {b}, ": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=mesh['a'=2,'b'=1,'c'=4] {'c','a'}, ": [list(range(8))],
    "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, ": ACROSS,
    "replica_groups=mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}, ": ACROSS,
    "replica_groups=mesh['a'=8] {'a':(1)2}, ": ACROSS,
    "replica_groups=mesh['a'=8] {'a':(4)2}, ": PAIRS,
    "replica_groups=mesh['a'=8] {'a':(2)2}, ": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "replica_groups={}, ": [list(range(8))],
    "": [list(range(8))],
}


@pytest.mark.parametrize("groups", FORMS)
def test_every_form_of_groups(groups: str):
    program = read_hlo(reduced(groups))
    assert device_groups(program.result("main"), program) == FORMS[groups]
    (found,) = collectives(reduced(groups))
    assert found == Collective("all-reduce", 128, len(FORMS[groups][0]))


def test_groups_of_replicas_join_all_their_partitions():
    (found,) = collectives(reduced("channel_id=1, replica_groups={{0}}, "))
    assert found.group_size == 8
    alone = reduced("channel_id=1, replica_groups={{0}}, use_global_device_ids=true, ")
    assert collectives(alone) == []


def test_an_unknown_form_and_no_program_are_sentences():
    with pytest.raises(ValueError, match="r has groups of an unknown form: replica_groups=all"):
        collectives(reduced("replica_groups=all, "))
    with pytest.raises(ValueError, match="no HLO with an ENTRY.*give compiled.as_text"):
        collectives("module @jit_f {}")


WRAPPED = """%wrapped (y: f32[32]) -> f32[4] {
  %y = f32[32]{0} parameter(0)
  ROOT %s = f32[4]{0} reduce-scatter(%y), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}
"""

ASYNC: dict[Kind, list[str]] = {
    "all-reduce": [
        "%s = f32[32]{0} all-reduce-start(%x), replica_groups=[4,2]<=[8], to_apply=%add",
        "ROOT %d = f32[32]{0} all-reduce-done(%s)",
    ],
    "all-gather": [
        "%s = (f32[32]{0}, f32[64]{0:T(256)S(1)}) all-gather-start(%x), replica_groups=[4,2]<=[8]",
        "ROOT %d = f32[64]{0} all-gather-done(%s)",
    ],
    "collective-permute": [
        "%s = (f32[32], f32[32], u32[], u32[]) collective-permute-start(%x), "
        "source_target_pairs={{0,1},{1,0},{2,3}}",
        "ROOT %d = f32[32]{0} collective-permute-done(%s)",
    ],
    "reduce-scatter": [
        "%s = ((f32[32]), f32[4]) async-start(%x), calls=%wrapped",
        "%u = ((f32[32]), f32[4]) async-update(%s), calls=%wrapped",
        "ROOT %d = f32[4]{0} async-done(%u), calls=%wrapped",
    ],
    "collective-broadcast": [
        "ROOT %b = f32[32]{0} collective-broadcast(%x), replica_groups=[4,2]<=[8]"
    ],
    "ragged-all-to-all": [
        "%i = s64[2]{0} constant({0, 1})",
        "ROOT %e = f32[32]{0} ragged-all-to-all(%x, %x, %i, %i, %i, %i), replica_groups=[4,2]<=[8]",
    ],
}


@pytest.mark.parametrize("kind", ASYNC)
def test_an_operation_in_parts_counts_once(kind: Kind):
    (found,) = collectives(hlo(*ASYNC[kind], before=WRAPPED))
    group = 8 if kind == "reduce-scatter" else 2
    payload = 256 if kind == "all-gather" else 128
    assert found == Collective(kind, payload, group)
    whole = kind in ("collective-permute", "collective-broadcast", "all-reduce")
    assert found.sent_bytes == (112 if group == 8 else 128 if whole or payload == 256 else 64)


def test_sums_together_are_one_of_all_their_bytes():
    text = hlo(
        "%h = bf16[3,5]{1,0} constant({...})",
        "%t = pred[]{:T(512)} constant(true)",
        "ROOT %r = (f32[32]{0}, bf16[3,5]{1,0}, /*index=2*/pred[]) all-reduce(%x, %h, /*index=2*/%t), "
        "replica_groups=[1,8]<=[8], to_apply=%add",
    )
    assert collectives(text) == [Collective("all-reduce", 128 + 30 + 1, 8)]


def test_an_element_of_a_tuple_has_a_short_form():
    text = hlo(
        "%t = (s32[], (f32[32]{0:T(8,128)(2,1)}, bf16[3,5]{1,0})) parameter(1)",
        "ROOT %g = bf16[24,5]{1,0} all-gather(%t#1#1), replica_groups=[1,8]<=[8], dimensions={0}",
    )
    assert collectives(text) == [Collective("all-gather", 8 * 30, 8)]


COUNTED = """%body (p: (s32[], f32[32])) -> (s32[], f32[32]) {
  %p = (s32[], f32[32]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %v = f32[32]{0} get-tuple-element(%p), index=1
  %r = f32[32]{0} all-reduce(%v), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[32]{0}) tuple(%next, %r)
}

%test (q: (s32[], f32[32])) -> pred[] {
  %q = (s32[], f32[32]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(6)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}
"""


@pytest.mark.parametrize(
    ("config", "times"), [("", 4), (', backend_config={"known_trip_count":{"n":"9"}}', 9)]
)
def test_a_loop_that_counts_up_to_a_number_is_known_without_a_word(config: str, times: int):
    """XLA for TPU prints no number of turns."""
    text = hlo(
        "%two = s32[] constant(2)",
        "%t = (s32[], f32[32]{0}) tuple(%two, %x)",
        f"%w = (s32[], f32[32]{{0}}) while(%t), condition=%test, body=%body{config}",
        "ROOT %out = f32[32]{0} get-tuple-element(%w), index=1",
        before=COUNTED,
    )
    assert collectives(text) == [Collective("all-reduce", 128, 2, times)]


def test_an_operation_beside_several_fusions_counts_once():
    """As XLA for TPU prints a gather that goes on while others compute."""
    fused = "".join(
        f"%fused.{i} (y: f32[32]) -> f32[64] {{\n"
        "  %y = f32[32]{0} parameter(0)\n"
        "  ROOT %g = f32[64]{0} all-gather(%y), channel_id=5, replica_groups=[4,2]<=[8], "
        "use_global_device_ids=true\n}\n\n"
        for i in range(3)
    )
    calls = [f"%f.{i} = f32[64]{{0}} fusion(%x), kind=kCustom, calls=%fused.{i}" for i in range(3)]
    assert collectives(hlo(*calls, before=fused)) == [Collective("all-gather", 256, 2)]


@pytest.mark.parametrize(
    ("table", "scattered", "undecided"),
    [
        ("{0, 16, 0, 16, 0, 16, 0, 16}", 128, 0),
        ("{0, 0, 16, 16, 0, 0, 16, 16}", 0, 0),
        ("{...}", 0, 128),
    ],
)
def test_a_part_is_looked_up_by_the_device_s_number(table: str, scattered: int, undecided: int):
    text = hlo(
        "%r = f32[32]{0} all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add",
        f"%table = s32[8]{{0}} constant({table})",
        "%id = u32[] partition-id()",
        "%entry = s32[1]{0} dynamic-slice(%table, %id), dynamic_slice_sizes={1}",
        "%place = s32[] bitcast(%entry)",
        "ROOT %mine = f32[16]{0} dynamic-slice(%r, %place), dynamic_slice_sizes={16}",
    )
    assert collectives(text) == [Collective("all-reduce", 128, 2, 1, scattered, undecided)]


@pytest.mark.parametrize(
    ("reader", "scattered"),
    [
        ("%g.1 = f32[32]{0} get-tuple-element(%r), index=1", 128),
        ("%g.1 = f32[32]{0} get-tuple-element(%r), index=0", 0),
        ("%g.1 = (f32[32]{0}, f32[32]{0}) optimization-barrier(%r)", 0),
        ("%g.1 = f32[32]{0} copy(%r#1)", 128),
        ("%g.1 = f32[32]{0} copy(%r#0)", 0),
        ("%g.1 = f32[32]{0} fusion(%r), kind=kLoop, calls=%second", 128),
        ("%g.1 = f32[32]{0} fusion(%r), kind=kLoop, calls=%first", 0),
    ],
)
def test_each_of_several_sums_is_scattered_or_not(reader: str, scattered: int):
    """Between start and done, and with another reader of the one that is sliced, or of both."""
    both = "(f32[32]{0}, f32[32]{0})"
    text = hlo(
        f"%s = {both} all-reduce-start(%x, %x), replica_groups=[1,8]<=[8], to_apply=%add",
        f"%r = {both} all-reduce-done(%s)",
        "%g = f32[32]{0} get-tuple-element(%r), index=0",
        "%id = u32[] partition-id()",
        "%length = u32[] constant(4)",
        "%place = u32[] multiply(%id, %length)",
        "%mine = f32[4]{0} dynamic-slice(%g, %place), dynamic_slice_sizes={4}",
        reader,
        "ROOT %both = (f32[4]{0}, f32[32]{0}) tuple(%mine, %g.1)",
        before="".join(
            f"%{name} (p: {both}) -> f32[32] {{\n  %p = {both} parameter(0)\n"
            f"  ROOT %e = f32[32]{{0}} get-tuple-element(%p), index={i}\n}}\n\n"
            for i, name in enumerate(("first", "second"))
        ),
    )
    assert collectives(text) == [Collective("all-reduce", 256, 8, 1, scattered)]


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
