"""Loading onto several devices, in a process of its own: how many there are is settled when JAX begins."""

import os
import subprocess
import sys
from pathlib import Path

from tests.families import golden

PROGRAM = """
import sys
import jax, numpy as np
from jax.sharding import Mesh
from jaxformer import load

mesh = Mesh(np.array(jax.devices()), ("tensor",))
config, params, _ = load(sys.argv[1], mesh=mesh, rules={"n": "tensor", "f": "tensor"})
whole = load(sys.argv[1])[1]
for array, part, shape in (
    (whole.blocks.attn.W_Q, params.blocks.attn.W_Q, (3, 16, 2, 4)),
    (whole.blocks.mlp.W_out, params.blocks.mlp.W_out, (3, 10, 16)),
    (whole.W_E, params.W_E, (24, 16)),
):
    assert [shard.data.shape for shard in part.addressable_shards] == [shape, shape]
    assert len({shard.device for shard in part.addressable_shards}) == 2
    np.testing.assert_array_equal(part, array)
print("each device has its part")
"""


def test_each_of_two_devices_gets_its_part(tmp_path: Path):
    golden("llama-plain").write(tmp_path)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "each device has its part\n", done.stderr
