"""Generation at its edges: stop sequences, whose tokens still count; logits that are NaN; no layers."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import Params, Sampling, generate, init, stream_tokens
from tests.models import SEED

KEY = jax.random.key(3)
LIKELIEST = Sampling(temperature=0)


def test_the_token_that_stops_a_text_keeps_its_probability_and_activations():
    params = init(SEED, KEY)
    capture = ("resid_post",)
    whole = generate(params, SEED, [3, 1], 9, KEY, capture=capture)
    stop = whole.tokens[4:6]
    stopped = generate(params, SEED, [3, 1], 9, KEY, capture=capture, stop=stop)
    n = int(stopped.lengths)
    assert 2 <= n <= 6
    np.testing.assert_array_equal(stopped.tokens[n - 2 : n], stop)
    np.testing.assert_array_equal(stopped.tokens[:n], whole.tokens[:n])
    np.testing.assert_array_equal(stopped.log_probs[:n], whole.log_probs[:n])
    kept, all_of_it = (out.activations["resid_post"] for out in (stopped, whole))
    np.testing.assert_array_equal(kept[:, :n], all_of_it[:, :n])
    assert (stopped.tokens[n:] == -1).all()
    assert not stopped.log_probs[n:].any()
    assert not kept[:, n:].any()


def broken_from(token: int) -> Params:
    """Parameters whose logits are NaN behind a token, and ordinary elsewhere."""
    params = init(SEED, KEY)
    return params._replace(W_E=params.W_E.at[token].set(jnp.nan))


@pytest.mark.parametrize("chunk", [1, 4])
def test_logits_that_are_nan_are_refused_naming_the_token(chunk: int):
    prompt = [3, 1]
    drawn = generate(init(SEED, KEY), SEED, prompt, 9, KEY).tokens.tolist()
    # Not 0, with which prompts are filled up.
    first, token = next(
        (i, t) for i, t in enumerate(drawn) if i > 1 and t not in (0, *prompt, *drawn[:i])
    )
    sentence = re.escape(f"NaN at generated token {first + 1} of prompt 0")
    params = broken_from(token)
    with pytest.raises(ValueError, match=sentence):
        generate(params, SEED, prompt, 9, KEY)
    with pytest.raises(ValueError, match=sentence):
        list(stream_tokens(params, SEED, prompt, 9, KEY, chunk=chunk))
    with pytest.raises(ValueError, match="NaN at generated token 0 of prompt 0"):
        generate(params, SEED, [token], 9, KEY, sampling=LIKELIEST)


def test_a_model_without_layers_goes_on_too():
    config = dataclasses.replace(SEED, n_layers=0)
    params = init(config, KEY)
    drawn = generate(params, config, [3, 1], 20, KEY, sampling=LIKELIEST, capture=("resid_pre",))
    assert params.W_U is not None
    after = (params.W_E @ params.W_U).argmax(axis=-1).tolist()
    said = [1, *drawn.tokens.tolist()]
    assert said[1:] == [after[token] for token in said[:-1]]
    assert drawn.activations["resid_pre"].shape == (0, 20, 8)
    pieces = stream_tokens(params, config, [3, 1], 20, KEY, sampling=LIKELIEST, context=4)
    assert np.concatenate([*pieces]).tolist() == said[1:]
