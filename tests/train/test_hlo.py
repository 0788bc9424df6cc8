"""What a program sends, in lines of HLO: also in those that XLA for CPU does not print."""

import pytest

from tests.helpers.errors import raises
from train.plan.collectives import (
    Collective,
    Kind,
    collectives,
)
from train.plan.groups import device_groups
from train.plan.hlo import read_hlo


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
    with raises(ValueError, "r", "replica_groups=all"):
        collectives(reduced("replica_groups=all, "))
    with raises(ValueError, "ENTRY", "module @jit_f {}", "compiled.as_text()"):
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
