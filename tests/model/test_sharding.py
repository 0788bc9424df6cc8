"""Rules: which axis of a model lies along which axis of a mesh, and what does not fit."""

from typing import Any

import pytest

from jaxformer import constrain, partition, shardings
from jaxformer.sharding import RULES, fitting
from tests.helpers.errors import raises
from tests.helpers.meshes import MODERN_8, layout_of

RULES_IN_FULL = {
    "batch": "data", "d": "fsdp", "n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor",
}  # fmt: skip


def test_rules_say_where_each_axis_goes():
    layout = partition(MODERN_8, RULES_IN_FULL)
    assert tuple(layout.blocks.attn.W_Q) == (None, "fsdp", "tensor", None)
    assert tuple(layout.blocks.attn.W_O) == (None, "tensor", None, "fsdp")
    assert layout.blocks.mlp is not None
    assert tuple(layout.blocks.mlp.W_out) == (None, "tensor", "fsdp")
    assert tuple(layout.W_E) == ("tensor", "fsdp")


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"x": "data"}, ("'x'", "d")),
        ({"d": "data", "n": "data"}, ("blocks.attn.W_Q", "d", "n", "'data'")),
        ({"d": "data", "v": ("tensor", "data")}, ("W_E", "v", "d", "'data'")),
        ({"k": "data"}, ("blocks.attn.W_K", 4, "k", 8)),
        ({"h": "other"}, ("h=other", "data=8")),
    ],
)  # fmt: skip
def test_rules_that_do_not_fit_are_refused(rules: Any, named: tuple):
    mesh = layout_of("data=8").mesh
    assert mesh is not None
    with raises(ValueError, *named):
        shardings(MODERN_8, mesh, rules)


def test_the_usual_rules_are_those_of_the_axes_that_a_mesh_has():
    mesh = layout_of("fsdp=4,tensor=2").mesh
    assert mesh is not None
    assert fitting(mesh, RULES) == RULES_IN_FULL | {"batch": "fsdp"}


def test_activations_follow_their_letters_and_never_an_axis_twice():
    layout = layout_of("data=2,tensor=4", ("t=tensor",))
    edit: Any = constrain(layout.mesh, dict(layout.rules))  # pyright: ignore[reportArgumentType]
    assert tuple(edit.places("resid_post", (8, 16))) == ("tensor", None)
    assert tuple(edit.places("q", (8, 8, 4))) == (None, "tensor", None)
    assert tuple(edit.places("logits", (8, 24))) == (None, "tensor")
    assert tuple(edit.places("resid_post", (7, 16))) == (None, None)  # 7 does not divide
