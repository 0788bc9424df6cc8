"""Parameters in parts on a mesh: every room takes them as they lie, and finds what it finds on one device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxformer
from jaxformer import Config, forward, shardings
from jaxformer.interp.attribution import attribution_patch
from jaxformer.interp.circuits import composition_scores, full_ov_circuit, qk_circuit
from jaxformer.interp.decompose import accumulated_resid, full_decomposition, head_results
from jaxformer.interp.edges import edge_attribution
from jaxformer.interp.edit import ablate
from jaxformer.interp.fold import fold_norm, foldable
from jaxformer.interp.heads import copying_score, head_scores
from jaxformer.interp.jacobians import jvp_between
from jaxformer.interp.lens import direct_logit_attribution, logit_lens
from jaxformer.interp.metric import measure
from jaxformer.sharding import fitting
from tests.helpers.models import NAMED, random_params, random_tokens
from tests.helpers.pairs import LENGTH, metric, texts

MESH = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
MODELS = {name: dataclasses.replace(config, n_vocab=12) for name, config in NAMED.items()}
MODERN = MODELS["modern"]
CLEAN, CORRUPTED = texts(MODERN)
KEY = jax.random.key(0)


def placed(params: Any, config: Config) -> Any:
    """Each parameter in parts, along d and along heads, neurons or vocabulary."""
    return jax.device_put(params, shardings(config, MESH, fitting(MESH)))


def close(found: Any, expected: Any) -> None:
    """To rounding, infinite and NaN in the same places; whole numbers are the same."""

    def one(found: Any, expected: Any) -> None:
        found, expected = np.asarray(found), np.asarray(expected)
        tolerance = 1e-5 * np.issubdtype(expected.dtype, np.floating)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)

    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(one, found, expected)


def test_no_device_has_the_whole():
    params = placed(random_params(MODERN), MODERN)
    W_Q, sizes = params.blocks.attn.W_Q, (MODERN.d_model // 2, MODERN.n_heads // 2, MODERN.d_head)
    assert {part.data.shape[1:] for part in W_Q.addressable_shards} == {sizes}


@pytest.mark.slow(unless=("olmo",))
@pytest.mark.parametrize("name", ["modern", "classic", "gemma", "olmo", "parallel"])
def test_the_logits_of_a_batch_in_parts_are_those_of_one_device(name: str):
    config = MODELS[name]
    params, tokens = random_params(config), random_tokens(config, 4 * 7).reshape(4, 7)
    logits = jax.jit(lambda p, batch: jax.vmap(lambda t: forward(p, config, t).logits)(batch))
    batch = jax.device_put(tokens, NamedSharding(MESH, PartitionSpec(("data", "fsdp"))))
    close(logits(placed(params, config), batch), logits(params, tokens))


def folded(params: Any) -> Any:
    """The logits of the model without norm weights."""
    params, config = foldable(params, MODERN)
    return forward(fold_norm(params, config), config, CLEAN).logits


def looked_into(params: Any) -> Any:
    """What the states are made of, and what they would say."""
    seen = forward(params, MODERN, CLEAN, capture=jaxformer.available_sites(MODERN)).activations
    given = params, MODERN, seen
    states = accumulated_resid(*given)
    parts = full_decomposition(*given), head_results(*given)
    said = logit_lens(params, MODERN, states), direct_logit_attribution(*given, states, CLEAN)
    return seen, states, parts, said


def last(logits: jax.Array) -> jax.Array:
    return logits[-1, 2] - logits[-1, 1]


PAIR = (MODERN, CLEAN, CORRUPTED)
DOORS: dict[str, Callable[[Any], Any]] = {
    "generate": lambda p: jaxformer.generate(
        p, MODERN, [[3, 1], [2, 4, 5]], 6, KEY, stop=3, capture=("resid_post", "pattern")
    ),
    "stream_tokens": lambda p: list(  # more than the model is shown at once
        jaxformer.stream_tokens(p, MODERN, [3, 1], 12, KEY, chunk=4, context=6)
    ),
    "beam_search": lambda p: jaxformer.beam_search(p, MODERN, [3, 1], 4, 3),
}
"""What compiles its own programs."""
ROOMS: dict[str, Callable[[Any], Any]] = {
    "score": lambda p: jaxformer.score(p, MODERN, CLEAN),
    "attribution_patch": lambda p: attribution_patch(p, *PAIR, last, ("z", "resid_pre")),
    "edge_attribution": lambda p: edge_attribution(p, *PAIR, last),
    "decompose, lens": looked_into,
    "circuits": lambda p: (qk_circuit(p, MODERN).AB, full_ov_circuit(p, MODERN).AB),
    "composition_scores": lambda p: composition_scores(p, MODERN, "k"),
    "heads": lambda p: (head_scores(p, MODERN, CLEAN, "previous_token"), copying_score(p, MODERN)),
    "fold_norm": folded,
    "jvp_between": lambda p: jvp_between(
        p, MODERN, CLEAN, ("resid_pre", 0), ("resid_post", 1), jnp.ones((LENGTH, 8))
    ),
    "ablate": lambda p: measure(p, MODERN, CLEAN, metric, edit=ablate("z", 0, head=1)),
}


@pytest.mark.slow(unless=("circuits", "composition_scores", "fold_norm", "ablate"))
@pytest.mark.parametrize("room", DOORS | ROOMS)
def test_a_room_finds_the_same_of_parameters_in_parts(room: str):
    params = random_params(MODERN)
    find = DOORS.get(room) or jax.jit(ROOMS[room])
    close(find(placed(params, MODERN)), find(params))
