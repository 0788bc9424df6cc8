"""Edits during generation act as in a full forward pass over the generated text."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import generate
from jaxformer.sites import position_axis
from tests.helpers.texts import GREEDY, close, full_pass, model, prompts, sliced

KEY = jax.random.key(11)
N = 6


def ablate(site, layer, value):
    return jnp.where(layer == 1, value.at[:, 2].set(0.0), value) if site == "z" else value


def steer(site, layer, value):
    if site != "resid_post":
        return value
    return jnp.where(layer == 0, value + 0.5 * jnp.arange(8, dtype=value.dtype), value)


def forbid(site, layer, value):
    return value.at[:, 4].set(-jnp.inf) if site == "logits" else value


def blur(site, layer, value):
    return value * 0.5 if site == "pattern" else value


def scale_keys(site, layer, value):
    return value * 2.0 if site == "k" else value


def from_position(edit, start: int):
    """Restrict the edit to the positions from `start` on."""

    def restricted(site, layer, value):
        axis = position_axis(site)
        shape = [-1 if i == axis else 1 for i in range(value.ndim)]
        late = jnp.arange(value.shape[axis]) >= start
        return jnp.where(late.reshape(shape), edit(site, layer, value), value)

    return restricted


@pytest.mark.slow(unless=("seed-forbid-0",))
@pytest.mark.parametrize(
    ("name", "edit", "edit_from"),
    [
        ("modern", ablate, 2), ("modern", scale_keys, 2), ("classic", steer, 2), ("windowed", blur, 2),
        ("modern", ablate, None), ("windowed", blur, 0), ("parallel", steer, None), ("seed", forbid, 0),
    ],
)  # fmt: skip
def test_an_edit_acts_as_in_a_full_forward_pass(name: str, edit, edit_from: int | None, x64):
    params, config = model(name)
    both, capture = prompts(config)[1:3], ("resid_post", "logits")
    run = partial(generate, params, config, both, N, KEY, sampling=GREEDY, capture=capture)
    found = run(edit=edit, edit_from=edit_from)
    plain = run()
    first = edit_from or 0
    for i, prompt in enumerate(both):
        text = jnp.array([*prompt, *found.tokens[i].tolist()], jnp.int32)
        start = 0 if edit_from is None else len(prompt) - 1 + edit_from
        full = full_pass(params, config, text[:-1], capture, from_position(edit, start))
        rows = sliced(full, slice(len(prompt) - 1, None))
        for site in capture:
            close(found.activations[site][i], rows[site], err_msg=site)
        assert found.tokens[i].tolist() == rows["logits"].argmax(axis=-1).tolist()
        np.testing.assert_array_equal(found.tokens[i, :first], plain.tokens[i, :first])
        assert np.isfinite(found.log_probs[i]).all()
        edited, unedited = (out.activations["logits"][i, first] for out in (found, plain))
        assert not np.array_equal(edited, unedited)


@pytest.mark.slow
def test_an_edit_from_far_beyond_the_text_never_acts(x64):
    params, config = model("modern")
    run = partial(generate, params, config, [[3, 1], [2, 4, 1]], 4, KEY, sampling=GREEDY)
    plain = run()
    for never in (2**31 - 1, 2**40, np.array([2**31 - 1, 9], np.int32)):
        np.testing.assert_array_equal(run(edit=forbid, edit_from=never).log_probs, plain.log_probs)
    assert (run(edit=forbid).log_probs != plain.log_probs).any()
