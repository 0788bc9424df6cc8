"""Loading onto several devices: each gets its part, and only that."""

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


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_each_of_two_devices_gets_its_part(kind: str, tmp_path: Path):
    golden("llama-plain").write(tmp_path / "theirs")
    config, whole, _ = load(tmp_path / "theirs")
    save(tmp_path / "ours", config, whole)
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",))
    params: Any = load(tmp_path / kind, mesh=mesh, rules={"n": "tensor", "f": "tensor"})[1]
    same(params, whole)
    for array, part in (
        (params.blocks.attn.W_Q, (3, 16, 2, 4)),
        (params.blocks.mlp.W_out, (3, 10, 16)),
        (params.W_E, (24, 16)),  # no rule: each has a copy
    ):
        assert [shard.data.shape for shard in array.addressable_shards] == [part, part]
        assert {shard.device for shard in array.addressable_shards} == set(mesh.devices.flat)


def test_rules_fit_the_model_and_come_with_a_mesh(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    mesh = Mesh(np.array(jax.devices()[:1]), ("tensor",))
    with raises(ValueError, "'heads'"):
        load(tmp_path, mesh=mesh, rules={"heads": "tensor"})
    with raises(ValueError, "rules", "mesh"):
        load(tmp_path, rules={"n": "tensor"})
