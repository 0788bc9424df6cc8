"""A first hour with jaxformer, as small programs to read from top to bottom. Each runs twice.

`python -m tests.test_first_hour` prints how long the second run of each takes, and how many programs it compiles.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxformer
from jaxformer import Compute, Config
from jaxformer.interp.edit import ablate, steer
from tests.helpers.compilations import compilations

config = Config(n_layers=2, d_model=32, n_heads=4, d_head=8, d_mlp=64, n_vocab=11)
params: Any = jaxformer.init(config, 0)
tokens = [3, 1, 4, 1, 5, 9, 2, 6]


def run_the_model():
    """Parameters are a tree of arrays; `forward` is a function of them. A batch is `jax.vmap`."""
    params = jaxformer.init(config, 0)
    logits = jaxformer.forward(params, config, tokens).logits
    assert logits.shape == (8, 11)
    batch = jnp.array([tokens, tokens[::-1]])
    many = jax.vmap(jaxformer.forward, in_axes=(None, None, 0))(params, config, batch).logits
    np.testing.assert_allclose(many[0], logits, atol=1e-5)


def differentiate_the_loss():
    """`loss` is the mean cross-entropy of the next token; its gradient is a tree like the parameters."""
    value, gradient = jax.value_and_grad(jaxformer.loss)(params, config, tokens)
    assert value == -jaxformer.score(params, config, tokens).mean()
    assert jnp.linalg.norm(gradient.blocks.attn.W_Q) > 0


def train():
    """A training loop in fifteen lines."""
    optimizer = optax.adam(1e-2)
    windows = jnp.array([[i % 11, (i + 1) % 11, (i + 2) % 11] for i in range(11)])

    def mean_loss(params):
        return jax.vmap(jaxformer.loss, in_axes=(None, None, 0))(params, config, windows).mean()

    @jax.jit
    def step(params, moments):
        gradient = jax.grad(mean_loss)(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    trained, moments = params, optimizer.init(params)
    for _ in range(20):
        trained, moments = step(trained, moments)
    assert mean_loss(trained) < 0.5 * mean_loss(params)


def look_inside():
    """Every intermediate value has a name; layers are stacked in front."""
    out = jaxformer.forward(params, config, tokens, capture="all")
    assert tuple(out.activations)
    assert set(out.activations) == {*jaxformer.available_sites(config)}
    pattern = out.activations["pattern"]  # [layer, head, query, key]
    np.testing.assert_allclose(pattern.sum(axis=-1), 1.0, rtol=1e-5)
    assert (pattern[0, :, 2, 3:] == 0).all()  # no query attends to a later key


def silenced(layer: int, head: int):
    """The logits of a model in which one head writes nothing, by surgery on its weights."""
    attn = params.blocks.attn
    attn = attn._replace(W_O=attn.W_O.at[layer, head].set(0.0))
    without = params._replace(blocks=params.blocks._replace(attn=attn))
    return jaxformer.forward(without, config, tokens).logits


def operate_on_weights():
    """Parameters are NamedTuples: `_replace` gives another model."""
    changed = silenced(1, 2) != jaxformer.forward(params, config, tokens).logits
    assert changed.any()


def ablate_by_a_builder():
    """An edit is data: for another head, the same program runs again."""
    for head in range(config.n_heads):
        edit = ablate("z", 1, head=head)
        logits = jaxformer.forward(params, config, tokens, edit=edit).logits
        np.testing.assert_allclose(logits, silenced(1, head), atol=1e-5)


def ablate_by_a_mapping():
    """For what no builder has: a function of the value at a site, or at the site of one layer."""
    edit = {("z", 1): lambda z: z.at[:, 2].set(0.0)}
    logits = jaxformer.forward(params, config, tokens, edit=edit).logits
    np.testing.assert_allclose(logits, silenced(1, 2), atol=1e-5)


def ablate_by_a_function():
    """The general form sees every site and layer. The layer is traced, so choose with `where`, not with `if`."""

    def edit(site, layer, value):
        return jnp.where(layer == 1, value.at[:, 2].set(0.0), value) if site == "z" else value

    logits = jaxformer.forward(params, config, tokens, edit=edit).logits
    np.testing.assert_allclose(logits, silenced(1, 2), atol=1e-5)


def call_each_part():
    """Embedding, blocks and unembedding are functions of their own."""
    state = jaxformer.embed(params, config, jnp.array(tokens))
    unstacked: Any = jaxformer.unstack(params)
    for block in unstacked.blocks:
        update = jaxformer.attend(block.attn, config, state)
        state = jaxformer.update(state, update)
        state = jaxformer.update(state, jaxformer.feed_forward(block.mlp, config, state))
    logits = jaxformer.unembed(params, config, state)
    np.testing.assert_allclose(logits, jaxformer.forward(params, config, tokens).logits, atol=1e-5)


def sample_at_a_temperature():
    """The same key gives the same text; temperature 0 takes the most probable token."""
    key = jax.random.key(0)
    warm = jaxformer.generate(params, config, tokens, 6, key, temperature=0.8)
    again = jaxformer.generate(params, config, tokens, 6, key, temperature=0.8)
    assert (warm.tokens == again.tokens).all()
    cold = jaxformer.generate(params, config, tokens, 1, key, temperature=0)
    assert cold.tokens[0] == jaxformer.forward(params, config, tokens).logits[-1].argmax()


def stop_at_a_token():
    """What comes after the stop is -1, which `texts` leaves out."""
    tokenizer = jaxformer.Characters("abcdefghijk")
    free = jaxformer.generate(params, config, [tokens, tokens[:3]], 6, jax.random.key(1))
    stop = int(free.tokens[0, 2])
    out = jaxformer.generate(params, config, [tokens, tokens[:3]], 6, jax.random.key(1), stop=stop)
    ended = out.tokens[0].tolist().index(stop) + 1
    assert (out.tokens[0, ended:] == -1).all()
    assert out.texts(tokenizer)[0] == tokenizer.decode(np.asarray(out.tokens[0, :ended]))


def steer_what_it_writes():
    """The strength of a steering vector is data too; `jax.vmap` tries several at once."""
    direction = params.W_U[:, 7]  # what raises the logit of token 7

    def continued(strength):
        edit = steer(1, direction, strength)
        return jaxformer.generate(
            params, config, tokens, 4, jax.random.key(0), edit=edit, temperature=0
        ).tokens

    texts = jax.vmap(continued)(jnp.array([0.0, 1.0, 100.0]))
    assert (texts[2] == 7).all()
    assert not (texts[0] == 7).all()
    assert (texts[2] == continued(100.0)).all()


def vmap_over_models_and_examples():
    """An ensemble is a tree with one more axis; a gradient per example is a vmap over the data."""
    keys = jax.random.split(jax.random.key(0), 3)
    models = jax.vmap(jaxformer.init, in_axes=(None, 0))(config, keys)
    losses = jax.vmap(jaxformer.loss, in_axes=(0, None, None))(models, config, jnp.array(tokens))
    assert losses.shape == (3,)
    batch = jnp.array([tokens, tokens[::-1]])
    each = jax.vmap(jax.grad(jaxformer.loss), in_axes=(None, None, 0))(params, config, batch)
    one = jax.grad(jaxformer.loss)(params, config, batch[1])
    np.testing.assert_allclose(each.W_E[1], one.W_E, atol=1e-5)


def save_load_and_export():
    """One folder holds a model; `export` writes one that the transformers library reads."""
    llama = Config(
        n_layers=2, d_model=32, n_heads=4, d_head=8, d_mlp=64, n_vocab=11, position="rotary",
        norm="rms", activation="silu", gated=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        jaxformer.save(f"{folder}/own", params, config, jaxformer.Characters("abcdefghijk"))
        model = jaxformer.load(f"{folder}/own")
        assert model.config == config
        assert (model.params.W_E == params.W_E).all()
        jaxformer.export(f"{folder}/hf", jaxformer.init(llama, 0), llama, None, "llama")
        assert jaxformer.load(f"{folder}/hf").config.norm == "rms"


def choose_the_precision():
    """`Compute` says how to run; parameters in another dtype are a `tree.map`."""
    exact = jaxformer.forward(params, config, tokens).logits
    half = jaxformer.forward(params, config, tokens, compute=Compute(dtype="float16")).logits
    np.testing.assert_allclose(half, exact, atol=0.02)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: np.asarray(array, np.float64), params)
        wide = jaxformer.forward(wide, config, tokens).logits
    np.testing.assert_allclose(exact, wide, atol=1e-5)


def take_a_model_without_layers():
    """With n_layers=0, embedding and unembedding are left: a bigram model."""
    bigrams = Config(n_layers=0, d_model=32, n_heads=4, d_head=8, d_mlp=64, n_vocab=11)
    params: Any = jaxformer.init(bigrams, 0)
    logits = jaxformer.forward(params, bigrams, tokens).logits
    np.testing.assert_allclose(logits, (params.W_E @ params.W_U)[jnp.array(tokens)], atol=1e-5)


def pack_two_documents():
    """Packed documents do not see each other, and no loss crosses from one to the next."""
    packed, segments = [*tokens, *tokens[:4]], [0] * 8 + [1] * 4
    logits = jaxformer.forward(params, config, packed, segments=segments).logits
    np.testing.assert_allclose(logits[8:], logits[:4], atol=1e-5)
    first, second = (jaxformer.score(params, config, one) for one in (tokens, tokens[:4]))
    expected = -(first.sum() + second.sum()) / 10
    found = jaxformer.loss(params, config, packed, segments=segments)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


PROGRAMS: dict[Callable[[], None], int] = {
    run_the_model: 0,
    differentiate_the_loss: 0,
    train: 1,  # a new `step`
    look_inside: 0,
    operate_on_weights: 0,
    ablate_by_a_builder: 0,
    ablate_by_a_mapping: 1,  # functions are traced at every call
    ablate_by_a_function: 1,
    call_each_part: 0,
    sample_at_a_temperature: 0,
    stop_at_a_token: 0,
    steer_what_it_writes: 0,
    vmap_over_models_and_examples: 0,
    save_load_and_export: 0,
    choose_the_precision: 0,
    take_a_model_without_layers: 0,
    pack_two_documents: 0,
}
"""The programs, and how many compilations a second run of each needs."""


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_second_run_compiles_only_what_is_new(program: Callable[[], None], standard_promotion):
    program()
    with compilations() as found:
        program()
    assert len(found) == PROGRAMS[program]


if __name__ == "__main__":
    for program in PROGRAMS:
        program()
        with compilations() as found:
            start = time.perf_counter()
            program()
            spent = time.perf_counter() - start
        print(f"{program.__name__:31} {1000 * spent:7.1f} ms {len(found):3} compilations")
