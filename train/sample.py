"""Continue a text with a trained model: `python -m train.sample runs/seed --prompt "..."`."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int, Key

from jaxformer.checkpoint import load
from jaxformer.config import Config
from jaxformer.params import Params
from jaxformer.tokenizer import Tokenizer, Words
from jaxformer.transformer import check_vocabulary, forward
from train.about import read_about


@dataclass(frozen=True)
class Command:
    """Continue a prompt with the best model of a finished run."""

    run: Annotated[Path, tyro.conf.Positional]
    """the run's folder, or a folder with a model in it"""
    prompt: str = "\n"
    """the text to go on from; its characters must be the corpus's"""
    n: int = 500
    """tokens to add"""
    temperature: float = 0.8
    """0 takes the likeliest token; 1 draws from the model's own distribution"""
    seed: int = 0
    """another seed, another text"""


def continue_text(
    params: Params,
    config: Config,
    tokenizer: Tokenizer,
    prompt: str,
    n: int,
    key: Key[Array, ""],
    *,
    temperature: float,
    window: int,
) -> str:
    """The n tokens that follow a prompt, as text; the model sees the last `window` tokens of it all.

    Raises:
        ValueError: an empty prompt, a character that the tokenizer never saw, n below 1, a temperature
            below 0.
    """
    if not 1 <= n <= 1_000_000:
        raise ValueError(f"n={n} must be at least 1 and at most 1000000")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be 0 or a positive number")
    tokens = tokenizer.encode(prompt)
    if not len(tokens):
        raise ValueError("the prompt is empty; give at least one character to go on from")
    check_vocabulary(tokens, config.n_vocab)
    tokens = tokens[-window:]
    padded = jnp.asarray(np.pad(tokens, (0, window - len(tokens))), jnp.int32)
    heat = jnp.asarray(temperature, jnp.float32)
    drawn = _draw(params, config, padded, jnp.asarray(len(tokens), jnp.int32), key, heat, n=n)
    return tokenizer.decode(np.asarray(drawn))


@partial(jax.jit, static_argnames="n")
def _draw(
    params: Params,
    config: Config,
    window: Int[Array, " window"],
    length: Int[Array, ""],
    key: Key[Array, ""],
    temperature: Float[Array, ""],
    *,
    n: int,
) -> Int[Array, " n"]:
    """N tokens, each drawn from a forward pass over the window; what fills it up cannot be seen."""

    def step(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
        window, length = state
        logits = forward(params, config, window).logits[length - 1]
        hot = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature > 0, hot, logits.argmax()).astype(window.dtype)
        full = length == len(window)
        window = jnp.where(full, jnp.roll(window, -1), window)
        length = jnp.minimum(length + 1, len(window))
        return (window.at[length - 1].set(token), length), token

    return jax.lax.scan(step, (window, length), jax.random.split(key, n))[1]


def find_model(run: Path) -> tuple[Path, int | None]:
    """A model's folder, and the context that it was trained on if a run's folder says so.

    Raises:
        ValueError: an ensemble's folder, which holds several models; a damaged `run.json`.
    """
    folder = run / "model" if (run / "run.json").is_file() else run
    members = run / "models"
    if folder != run and members.is_dir():
        raise ValueError(f"{run} is an ensemble's; name one of its models' folders in {members}")
    home = folder.parent.parent if folder.parent.name == "models" else folder.parent
    about = home / "run.json"
    return folder, read_about(about)["recipe"]["context"] if about.is_file() else None


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status."""
    command = tyro.cli(Command, prog="python -m train.sample", args=args)
    try:
        folder, context = find_model(command.run)
        config, params, tokenizer = load(folder)
        if tokenizer is None:
            raise ValueError(f"{folder} was saved without a tokenizer, so it cannot read a prompt")  # noqa: TRY301
        window = context or config.n_context or len(tokenizer.encode(command.prompt)) + command.n
        text = continue_text(
            params, config, tokenizer, command.prompt, command.n, jax.random.key(command.seed),
            temperature=command.temperature, window=window,
        )  # fmt: skip
    except (ValueError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    between = " " if isinstance(tokenizer, Words) else ""
    print(command.prompt + between + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
