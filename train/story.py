"""A model taken apart: `python -m train.story` trains one that learns induction, and finds out how it does it.

The task is random tokens that repeat: after ... A B ... A comes B. Two layers of attention alone learn it with two
heads: one tells each token which one stands before it, and the other looks for a token that was told of its like.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int

from jaxformer.checkpoint import load
from jaxformer.config import Config
from jaxformer.interp.circuits import full_ov_circuit
from jaxformer.interp.edit import ablate
from jaxformer.interp.heads import copying_score, induction_score, previous_token_score
from jaxformer.interp.patching import patch_sweep
from jaxformer.interp.paths import path_patch
from jaxformer.interp.plots import heat_map
from jaxformer.params import Params
from jaxformer.sites import keep
from jaxformer.transformer import forward
from train.data import open_data
from train.optimizer import make_optimizer
from train.presets import PRESETS
from train.run import fresh_state, keys
from train.step import many_steps
from train.watch import watcher

CHUNK = 50


class Texts(NamedTuple):
    """Sequences of different tokens, twice; and pairs that differ in what stands before the answer's first showing."""

    repeated: Int[Array, "b t"]
    clean: Int[Array, "b t"]
    corrupted: Int[Array, "b t"]
    answers: Int[Array, " b"]
    period: int


@dataclass(frozen=True, kw_only=True)
class Command:
    """Find a model's induction head, and what it is made of."""

    load: Path | None = None
    """the folder of a model with two layers or more, say runs/induction/model; None: train one"""
    steps: Annotated[int, tyro.conf.arg(help="of the training")] = 400
    picture: Path = Path("story.png")
    """where to draw what was found"""


def train(steps: int) -> tuple[Config, Params]:
    """The induction preset at half its context, in few steps."""
    recipe = PRESETS["induction"]()
    small = replace(recipe.config, n_context=31)
    recipe = replace(recipe, config=small, context=31, steps=steps, watch=("induction",))
    data = open_data(recipe)
    config = recipe.config.for_tokenizer(data.tokenizer)
    take_steps = many_steps(config, make_optimizer(config, recipe.optimizer, steps), recipe.compute)
    look = jax.jit(watcher(recipe.watch, config, data.held_out, recipe.compute))
    state = fresh_state(recipe, config)
    print("Training. The loss falls when a head becomes an induction head:")
    for done in range(0, steps, CHUNK):
        some = np.arange(done, min(done + CHUNK, steps))
        state, history = take_steps(state, data.draw(keys(recipe.seed).batches, some))
        loss, best = np.asarray(history["loss"])[-1], np.max(look(state.params)["induction"])
        print(f"  step {some[-1] + 1:4}  loss {loss:5.3f}  best induction score {best:4.2f}")
    return config, state.params


def write_texts(config: Config, rows: int = 16) -> Texts:
    """As long as the model's positions and vocabulary allow, and 31 tokens at most."""
    period = min((config.n_context or 31) // 2, 15, config.n_vocab - 1)
    each = jax.random.split(jax.random.key(0), rows)
    tokens = jax.vmap(lambda key: jax.random.permutation(key, config.n_vocab))(each)
    sequence, other, middle = tokens[:, :period], tokens[:, period], period // 2
    clean = jnp.concatenate([sequence, sequence[:, : middle + 1]], axis=1)
    corrupted = clean.at[:, middle].set(other)
    return Texts(jnp.tile(sequence, 2), clean, corrupted, sequence[:, middle + 1], period)


def score(params: Params, config: Config, texts: Texts) -> tuple[Array, Array]:
    """Induction and previous-token scores; the latter in the first showing, where alone it is of use."""

    def one(tokens: Int[Array, " t"]) -> tuple[Array, Array]:
        pattern = forward(params, config, tokens, capture=("pattern",)).activations["pattern"]
        first = pattern[..., : texts.period, : texts.period]
        return induction_score(pattern, texts.period), previous_token_score(first)

    scores = jax.jit(jax.vmap(one))(texts.repeated)
    return jax.tree.map(lambda each: each.mean(0), scores)


def losses_without(params: Params, config: Config, texts: Texts) -> tuple[Array, Array]:
    """Nats per token in the second showing: of the whole model, and [l n] with one head silent."""

    def loss(edit: Any) -> Float[Array, ""]:
        logits = jax.vmap(lambda tokens: forward(params, config, tokens, edit=edit).logits)
        chances = jax.nn.log_softmax(logits(texts.repeated))[:, texts.period : -1]
        return -jnp.take_along_axis(chances, texts.repeated[:, texts.period + 1 :, None], 2).mean()

    layers, heads = jnp.indices((config.n_layers, config.n_heads))
    silent = jax.vmap(jax.vmap(lambda layer, head: loss(ablate("z", layer, head=head))))
    return jax.jit(loss, static_argnums=0)(keep), jax.jit(silent)(layers, heads)


def patch(params: Params, config: Config, texts: Texts) -> tuple[Array, dict[str, Array]]:
    """The part of the answer's log-probability that a head's clean output restores, and each path between two heads.

    0 is the corrupted run, 1 the clean one.
    """
    last = jnp.array([-1])

    def metric(logits: Float[Array, "b r v"]) -> Float[Array, ""]:
        chances = jax.nn.log_softmax(logits[:, -1])
        return jnp.take_along_axis(chances, texts.answers[:, None], axis=1).mean()

    run = jax.jit(jax.vmap(lambda tokens: forward(params, config, tokens, read=last).logits))
    low, high = metric(run(texts.corrupted)), metric(run(texts.clean))
    pair = params, config, texts.clean, texts.corrupted, metric
    heads = patch_sweep(*pair, "z", ("layer", "head"), read=last)
    paths = {kind: path_patch(*pair, kind, read=last) for kind in "qkv"}
    return jax.tree.map(lambda value: (value - low) / (high - low), (heads, paths))


def tell(params: Params, config: Config) -> dict[str, Array]:
    """Print what there is to find; the numbers of every head, by name."""
    texts = write_texts(config)
    induction, previous = score(params, config, texts)
    _table("\n1. Look: induction score of every head", induction)
    layer, head = _largest(induction)
    name = f"{layer}.{head}"
    whole, without = losses_without(params, config, texts)
    _table(f"\n2. Ablate: loss {whole:.3f} on the second half; with a head silent", without)
    restored, paths = patch(params, config, texts)
    _table("\n3. Patch: part of the answer restored by a head from the other text", restored)
    into = {kind: paths[kind][:, :, layer, _group(config, kind, head)] for kind in "qkv"}
    most = "   ".join(f"{kind}: {np.nanmax(value):.2f}" for kind, value in into.items())
    _table(f"\n4. Trace: the same by the path into {name}'s keys alone", into["k"])
    sender = _largest(into["k"])
    print(f"  best path into its {most}")
    print(f"  from {sender[0]}.{sender[1]}, whose previous-token score is {previous[sender]:.2f}")
    copies = copying_score(params, config)
    _table("\n5. Read: copying score of every OV circuit", copies)
    own = full_ov_circuit(params, config)[layer, head].AB.argmax(axis=1)
    right = int((own == jnp.arange(config.n_vocab)).sum())
    print(f"  {name} raises a token's own logit most for {right} of {config.n_vocab} tokens")
    return {
        "induction score": induction,
        "restored by patching": restored,
        f"path into keys of {name}": into["k"],
        "previous-token score": previous,
    }


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status."""
    command = tyro.cli(Command, prog="python -m train.story", args=args)
    try:
        config, params = train(command.steps) if command.load is None else load(command.load)[:2]
        if config.n_layers < 2:
            raise ValueError(f"n_layers={config.n_layers}: induction takes two layers")  # noqa: TRY301
        found = tell(params, config)
        by = ("score", "layer", "head")
        maps = heat_map(np.stack(list(found.values())), by, labels={"score": list(found)})
        maps.savefig(command.picture)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nThe picture is {command.picture}")
    return 0


def _table(title: str, values: Float[Array, "l n"]) -> None:
    print(title)
    for layer, row in enumerate(np.asarray(values)):
        print(f"  layer {layer}  " + "".join(f"{value:7.2f}" for value in row))


def _largest(values: Float[Array, "l n"]) -> tuple[int, int]:
    layer, head = np.unravel_index(np.nanargmax(values), values.shape)
    return int(layer), int(head)


def _group(config: Config, kind: str, head: int) -> int:
    """The number of the head that a query head reads keys or values from."""
    return head if kind == "q" else head * config.sizes["k"] // config.n_heads


if __name__ == "__main__":
    sys.exit(main())
