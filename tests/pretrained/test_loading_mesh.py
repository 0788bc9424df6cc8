"""Loading onto several devices: each gets its part, and only that."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer import load
from tests.helpers.families import golden


def test_each_of_two_devices_gets_its_part(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",))
    params: Any = load(tmp_path, mesh=mesh, rules={"n": "tensor", "f": "tensor"})[1]
    whole: Any = load(tmp_path)[1]
    for array, part, shape in (
        (whole.blocks.attn.W_Q, params.blocks.attn.W_Q, (3, 16, 2, 4)),
        (whole.blocks.mlp.W_out, params.blocks.mlp.W_out, (3, 10, 16)),
        (whole.W_E, params.W_E, (24, 16)),  # no rule: each has a copy
    ):
        assert [shard.data.shape for shard in part.addressable_shards] == [shape, shape]
        assert {shard.device for shard in part.addressable_shards} == set(mesh.devices.flat)
        np.testing.assert_array_equal(part, array)
