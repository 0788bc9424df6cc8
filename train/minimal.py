"""Train the seed model in one file, to read and to fork: `python -m train.minimal`.

This is the run of `python -m train` without checkpoints, reports and options: the same text, initial values, batches,
loss and optimizer, and so the same losses.
"""

from collections.abc import Iterator
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import jaxformer
from jaxformer import Characters, Compute, Config, Params, Sampling
from jaxformer.model.spec import is_spec

# --- settings: change these ---

STEPS, BATCH, CONTEXT = 800, 24, 32
LEARNING_RATE, WARM_UP, WEIGHT_DECAY = 3e-3, 100, 0.1
COMPUTE = Compute(unroll=4)  # run all four layers in one iteration of the loop over layers

# --- data: a text, one token per character ---

TEXT = "\n\n".join(topics[name] for name in sorted(topics))  # the documentation inside Python
CUT = len(TEXT) * 9 // 10
TOKENIZER = Characters.of(TEXT)
TRAIN, VALIDATION = TOKENIZER.encode(TEXT[:CUT]), TOKENIZER.encode(TEXT[CUT:])

CONFIG = Config(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512, n_vocab=TOKENIZER.n_vocab)


def draw_batch(key: Array, step: int) -> Int[np.ndarray, "b window"]:
    """Draw windows of CONTEXT + 1 tokens that start anywhere in the text; the last token is only a target."""
    last = len(TRAIN) - CONTEXT
    starts = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, last)
    return TRAIN[np.asarray(starts)[:, None] + np.arange(CONTEXT + 1)]


# --- loss: the mean cross-entropy of the next token, in nats ---


def mean_loss(params: Params, windows: Int[Array, "b window"]) -> Float[Array, ""]:
    """Return the mean over a batch of sequences, each a token longer than what the model reads."""
    of_one = lambda window: jaxformer.loss(params, CONFIG, window, compute=COMPUTE)  # noqa: E731
    return jax.vmap(of_one)(windows).mean()


# --- optimizer: AdamW with a warm-up, then half a cosine; weight decay for the matrices only ---


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """Clip the gradient, then update by AdamW."""
    warm_up = min(WARM_UP, steps // 2)
    rise = optax.linear_schedule(0.0, LEARNING_RATE, max(warm_up, 1))
    fall = optax.cosine_decay_schedule(LEARNING_RATE, max(steps - warm_up, 1), alpha=0.1)
    matrices = jax.tree.map(lambda spec: bool(spec.reads), jaxformer.specs(CONFIG), is_leaf=is_spec)
    adamw = optax.adamw(
        optax.join_schedules([rise, fall], [warm_up]),
        b2=0.99,
        weight_decay=WEIGHT_DECAY,
        mask=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


# --- step and loop ---


@partial(jax.jit, static_argnames="optimizer", donate_argnames=("params", "moments"))
def train_step(
    params: Any, moments: Any, windows: Int[Array, "b window"], optimizer: Any
) -> tuple[Any, Any, Float[Array, ""]]:
    """Take one step; return also the loss from before it."""
    loss, gradient = jax.value_and_grad(mean_loss)(params, windows)
    updates, moments = optimizer.update(gradient, moments, params)
    params = optax.apply_updates(params, updates)
    return params, moments, loss


def train(seed: int = 0, steps: int = STEPS) -> Iterator[tuple[Params, float]]:
    """Yield the parameters after each step, valid until the next step, and the loss from before the step."""
    init_key, batch_key, _ = jax.random.split(jax.random.key(seed), 3)
    params: Any = jaxformer.init(CONFIG, init_key)
    optimizer = make_optimizer(steps)
    moments = optimizer.init(params)
    for step in range(steps):
        windows = jnp.asarray(draw_batch(batch_key, step))
        params, moments, loss = train_step(params, moments, windows, optimizer)
        yield params, float(loss)


# --- sample ---


def sample(params: Params, prompt: str = "The ", n_tokens: int = 200) -> str:
    """Continue a text."""
    out = jaxformer.generate(
        params, CONFIG, TOKENIZER.encode(prompt), n_tokens, jax.random.key(0),
        sampling=Sampling(temperature=0.8),
    )  # fmt: skip
    return prompt + TOKENIZER.decode(np.asarray(out.tokens))


def main(steps: int = STEPS) -> None:
    """Train, and print the losses."""
    print(f"{jaxformer.count(CONFIG):,} parameters, {len(TRAIN):,} tokens to train on")
    for step, (params, loss) in enumerate(train(steps=steps)):
        if step % 100 == 0:
            print(f"step {step:>4}  loss {loss:.4f}")
        if step == steps - 1:
            report(params)


def report(params: Params) -> None:
    """Print the validation loss and a sample."""
    rows = (len(VALIDATION) - 1) // CONTEXT
    windows = np.lib.stride_tricks.sliding_window_view(VALIDATION, CONTEXT + 1)
    loss = jax.jit(mean_loss)(params, windows[: rows * CONTEXT : CONTEXT])
    print(f"validation loss {loss:.4f}\n\n{sample(params)}")


if __name__ == "__main__":
    main()
