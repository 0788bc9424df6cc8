"""Take a model apart: `python -m train.story` trains a model that learns induction, and finds the heads that do it.

The task is random tokens that repeat: after ... A B ... A comes B. Two attention layers can learn it: a head of the
first layer copies each token to the next position, and heads of the second layer attend to the positions to which the
current token was copied.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int

from jaxformer.config import Config
from jaxformer.interp.circuits import full_ov_circuit
from jaxformer.interp.edit import ablate
from jaxformer.interp.heads import copying_score, induction_score, previous_token_score
from jaxformer.interp.patching import patch_sweep
from jaxformer.interp.paths import path_patch
from jaxformer.interp.plots import heat_map
from jaxformer.model.params import Params
from jaxformer.model.transformer import forward
from jaxformer.pretrained.checkpoint import load as load_model
from jaxformer.sites import identity
from train.compiled import many_steps
from train.data.dataset import open_data
from train.optimizer import make_optimizer
from train.presets import PRESETS
from train.run import fresh_state, keys
from train.step import StepOptions
from train.watch import watcher


class Texts(NamedTuple):
    """Random sequences, each twice; and pairs of texts that end in A, where only the clean one has A B before."""

    repeated: Int[Array, "b t"]
    clean: Int[Array, "b t"]
    corrupted: Int[Array, "b t"]
    answers: Int[Array, " b"]
    period: int


def train(steps: int, chunk: int = 50) -> tuple[Params, Config]:
    """Train the induction preset with half its heads and half its context, in a few steps."""
    recipe = PRESETS["induction"]()
    small = replace(recipe.config, n_heads=2, d_head=32, n_context=31)
    recipe = replace(recipe, config=small, context=31, steps=steps, watch=("induction",))
    data = open_data(recipe)
    config = recipe.config.for_tokenizer(data.tokenizer)
    optimizer = make_optimizer(config, recipe.optimizer, steps)
    take_steps = many_steps(config, optimizer, StepOptions(compute=recipe.compute))
    measure = jax.jit(watcher(recipe.watch, config, data.held_out, recipe.compute))
    state = fresh_state(recipe, config)
    print("Train: the loss falls while heads become induction heads")
    for done in range(0, steps, chunk):
        some = np.arange(done, min(done + chunk, steps))
        state, history = take_steps(state, data.draw(keys(recipe.seed).batches, some))
        loss, best = np.asarray(history["loss"])[-1], np.max(measure(state.params)["induction"])
        print(f"  step {some[-1] + 1:4}  loss {loss:5.3f}  best induction score {best:4.2f}")
    return state.params, config


def write_texts(config: Config, rows: int = 16) -> Texts:
    """Write texts as long as the model's positions and vocabulary allow, up to 30 tokens."""
    period = min((config.max_length or 30) // 2, 15, config.n_vocab - 1)
    each = jax.random.split(jax.random.key(0), rows)
    tokens = jax.vmap(lambda key: jax.random.permutation(key, config.n_vocab))(each)
    sequence, other, middle = tokens[:, :period], tokens[:, period], period // 2
    clean = jnp.concatenate([sequence, sequence[:, : middle + 1]], axis=1)
    corrupted = clean.at[:, middle].set(other)
    return Texts(
        jnp.tile(sequence, 2), clean, corrupted, sequence[:, (middle + 1) % period], period
    )


def score(params: Params, config: Config, texts: Texts) -> tuple[Array, Array]:
    """Return induction scores, and previous-token scores in the first half, where induction needs them."""

    def one(tokens: Int[Array, " t"]) -> tuple[Array, Array]:
        pattern = forward(params, config, tokens, capture=("pattern",)).activations["pattern"]
        first = pattern[..., : texts.period, : texts.period]
        return induction_score(pattern, texts.period), previous_token_score(first)

    return jax.tree.map(lambda each: each.mean(0), jax.vmap(one)(texts.repeated))


@jax.jit
def loss_without(params: Params, config: Config, texts: Texts, silent: Any) -> Float[Array, ""]:
    """Return the loss in nats per token of the second half, with `silent` = (layer, heads), if any, ablated."""
    edit = identity if silent is None else ablate("z", silent[0], head=silent[1])
    run = jax.vmap(lambda tokens: forward(params, config, tokens, edit=edit).logits)
    second = slice(texts.repeated.shape[1] // 2, -1)
    chances = jax.nn.log_softmax(run(texts.repeated))[:, second]
    return -jnp.take_along_axis(chances, texts.repeated[:, 1:][:, second.start :, None], 2).mean()


def patch(params: Params, config: Config, texts: Texts) -> tuple[Array, dict[str, Array]]:
    """Return how much of the answer's log-probability each head, and each path between heads, restores (1: all)."""
    last = jnp.array([-1])

    def metric(logits: Float[Array, "b r v"]) -> Float[Array, ""]:
        chances = jax.nn.log_softmax(logits[:, -1])
        return jnp.take_along_axis(chances, texts.answers[:, None], axis=1).mean()

    run = jax.vmap(lambda tokens: forward(params, config, tokens, logits_at=last).logits)
    low, high = metric(run(texts.corrupted)), metric(run(texts.clean))
    if abs(high - low) < 1e-3:
        raise ValueError(
            "this story ends here: the model predicts B equally well without an earlier A B"
        )
    inputs = params, config, texts.clean, texts.corrupted, metric
    heads = patch_sweep(*inputs, "z", ("layer", "head"), logits_at=last)
    paths = {kind: path_patch(*inputs, kind, logits_at=last) for kind in "qkv"}
    return jax.tree.map(lambda value: (value - low) / (high - low), (heads, paths))


def tell(params: Params, config: Config) -> dict[str, Array]:
    """Print the findings; return scores of every head, by name."""
    texts = write_texts(config)
    induction, previous = score(params, config, texts)
    layer, head = _largest(induction)
    name = f"{layer}.{head}"
    _table(f"1. Look: induction scores; the highest is {name}'s", induction)
    if not layer:
        raise ValueError(
            f"this story ends here: {name} is in the first layer, with no head before it"
        )

    heads = jnp.indices(induction.shape)
    each = jax.vmap(jax.vmap(lambda *silent: loss_without(params, config, texts, silent)))(*heads)
    _table("2. Ablate: loss on the second half, with one head silent", each)
    alike = jnp.flatnonzero(induction[layer] > induction[layer, head] / 2)
    intact, ablated = (loss_without(params, config, texts, s) for s in (None, (layer, alike)))
    print(
        f"  with none silent {intact:.3f}; with all of layer {layer} that score half as much {ablated:.2f}"
    )

    restored, paths = patch(params, config, texts)
    _table("3. Patch: how much of the answer a head restores", restored)
    best = {kind: float(np.nanmax(values[:, :, layer, head])) for kind, values in paths.items()}
    into = paths["k"][:, :, layer, head]
    sender = _largest(into)
    _table(f"4. Trace: the same by its path into the keys of {name} alone", into)
    print("  the best into its", ", ".join(f"{kind} {value:.2f}" for kind, value in best.items()))
    print(f"  {sender[0]}.{sender[1]} has a previous-token score of {previous[sender]:.2f}")

    _table("5. Read: copying scores of the OV circuits", copying_score(params, config))
    circuit: Any = full_ov_circuit(params, config)[layer, head]
    own = circuit.AB.argmax(axis=1)
    right = int((own == jnp.arange(config.n_vocab)).sum())
    print(f"  {name} raises the token's own logit most for {right} of {config.n_vocab} tokens")
    names = "induction score", "restored", f"path into {name}'s keys", "previous-token score"
    return dict(zip(names, (induction, restored, into, previous), strict=True))


def story(*, load: Path | None = None, steps: int = 400, picture: Path = Path("story.png")) -> None:
    """Find the induction head of a model, and the heads that it depends on.

    Args:
        load: folder of the model to examine, such as runs/induction/model; None: train one.
        steps: training steps.
        picture: file for the plot of the scores.
    """
    if picture.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--picture {picture} must end in .png, .svg or .pdf")
    if not picture.absolute().parent.is_dir():
        raise ValueError(
            f"{picture} cannot be written: there is no such folder; choose another --picture"
        )
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    params, config = train(steps) if load is None else load_model(load)[:2]
    if config.n_layers < 2 or config.n_kv_heads not in (None, config.n_heads):
        raise ValueError(
            "this story needs at least two layers, and one key head per query head; this model has "
            f"n_layers={config.n_layers}, n_heads={config.n_heads}, n_kv_heads={config.n_kv_heads}"
        )
    if min(config.n_vocab - 1, (config.max_length or 4) // 2) < 2:
        raise ValueError(
            "this story needs at least three vocabulary entries and a context of four; this model has "
            f"n_vocab={config.n_vocab}, n_context={config.max_length}"
        )
    found = tell(params, config)
    by, labels = ("score", "layer", "head"), {"score": list(found)}
    heat_map(np.stack(list(found.values())), by, labels=labels).savefig(picture)
    print(f"The picture is {picture}")


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        tyro.cli(story, prog="python -m train.story", args=args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _table(title: str, values: Float[Array, "l n"]) -> None:
    print(f"\n{title}")
    for layer, row in enumerate(np.asarray(values)):
        print(f"  layer {layer}" + "".join(f"{value:8.2f}" for value in row))


def _largest(values: Float[Array, "l n"]) -> tuple[int, int]:
    layer, head = np.unravel_index(np.nanargmax(values), values.shape)
    return int(layer), int(head)


if __name__ == "__main__":
    sys.exit(main())
