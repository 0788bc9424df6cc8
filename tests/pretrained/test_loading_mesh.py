"""Loading onto several devices places only its shard on each."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxformer import load, save
from tests.helpers.errors import raises
from tests.helpers.families import golden
from tests.helpers.models import same


@pytest.mark.parametrize("kind", ["saved", "hugging_face"])
def test_each_of_two_devices_holds_its_shard(kind: str, tmp_path: Path):
    golden("llama-plain").write(tmp_path / "hugging_face")
    expected, config, _ = load(tmp_path / "hugging_face")
    save(tmp_path / "saved", expected, config)
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",))
    params: Any = load(tmp_path / kind, mesh=mesh, rules={"n": "tensor", "f": "tensor"}).params
    same(params, expected)
    for array, shape in (
        (params.blocks.attn.W_Q, (3, 16, 2, 4)),
        (params.blocks.mlp.W_out, (3, 10, 16)),
        (params.W_E, (24, 16)),  # no rule: each device has a copy
    ):
        assert [shard.data.shape for shard in array.addressable_shards] == [shape, shape]
        assert {shard.device for shard in array.addressable_shards} == set(mesh.devices.flat)


def test_unknown_axes_and_rules_without_a_mesh_are_refused(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    mesh = Mesh(np.array(jax.devices()[:1]), ("tensor",))
    with raises(ValueError, "'heads'"):
        load(tmp_path, mesh=mesh, rules={"heads": "tensor"})
    with raises(ValueError, "rules", "mesh"):
        load(tmp_path, rules={"n": "tensor"})
