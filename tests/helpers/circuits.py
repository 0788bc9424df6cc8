"""Models whose weights are set by hand, so that what every part of them does is known beforehand.

The stream is cut into subspaces, a coordinate per token or per position in each: a token is one-hot in TOKEN,
its place one-hot in POSITION. Attention layers move one-hot vectors from subspace to subspace, and the
unembedding reads ANSWER alone, so that nothing reaches the logits but what a circuit puts there.
Within a head, the first coordinates stand for tokens and the rest for positions: a query and a key that agree
on one of them score SHARP, far above anything else, and the softmax is all but certain.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import Config, Params, Rotary, abstract

V, C = 7, 12
"""Tokens of the vocabulary, and rows of the position table."""
SHARP = 40.0
"""The score of a query and a key that agree; half of it still leaves e^-20 to all others."""

TOKEN, POSITION, PREVIOUS, ANSWER, SPARE = (
    slice(start, start + size)
    for start, size in ((0, V), (V, C), (V + C, V), (2 * V + C, V), (3 * V + C, V))
)
"""Subspaces of the stream: this token, its place, the token before it, the guess at the next, and what nobody reads."""
BY_TOKEN, BY_PLACE = slice(0, V), slice(V, V + C)
"""Subspaces of a head."""


class Circuit(NamedTuple):
    """A model, and the (layer, head) of the heads with a name."""

    params: Params
    config: Config
    heads: dict[str, tuple[int, int]]


def induction(dtype: Any = jnp.float32) -> Circuit:
    """Two layers of attention alone: after ... A B ... A they say B.

    Layer 0: a previous-token head tells every token which one stands before it, in PREVIOUS. Layer 1: an
    induction head asks for a token before which stood the current one. Its key reads what the earlier head
    wrote (K-composition), and its OV circuit copies the token that it finds to ANSWER.
    Beside them are a duplicate-token head and one that looks at its own token; both write into SPARE.
    """
    config = _learned(n_layers=2, d_mlp=0)
    params = _blank(config)
    heads = {"duplicate": (0, 0), "previous": (0, 1), "induction": (1, 0), "current": (1, 1)}
    _look_at_duplicate(params, *heads["duplicate"])
    _move(params, *heads["duplicate"], TOKEN, SPARE)
    _look_back(params, *heads["previous"], back=1)
    _move(params, *heads["previous"], TOKEN, PREVIOUS)
    _look_after_same(params, *heads["induction"])
    _move(params, *heads["induction"], TOKEN, ANSWER)
    _look_back(params, *heads["current"], back=0)
    _move(params, *heads["current"], TOKEN, SPARE)
    return Circuit(_arrays(params, dtype), config, heads)


def previous_token(dtype: Any = jnp.float32) -> Circuit:
    """One layer, rotary positions: a head that answers with the token before, for up to 7 tokens.

    The first two coordinates of a head turn by one radian a position. Queries and keys are the same for every
    token: a constant, found as the sum of the one-hot coordinates. The query is turned forward by one more
    radian against the key, so that they are parallel exactly one position apart: the score is
    4·SHARP·cos(distance - 1). Rotary leaves values alone, so that seven more coordinates carry the token.
    The other head is the same without the extra turn: it looks at its own token, and writes nothing.
    """
    config = Config(
        n_layers=1, d_model=2 * V, n_heads=2, d_head=2 + V + 1, d_mlp=0, n_vocab=V,
        position="rotary", rotary=Rotary(fraction=2 / (2 + V + 1)), attention_scale=1.0,
    )  # fmt: skip
    params, attn = _blank(config), slice(2, 2 + V)
    heads = {"current": (0, 0), "previous": (0, 1)}
    token, answer = slice(0, V), slice(V, 2 * V)
    for name, back in (("current", 0.0), ("previous", 1.0)):
        layer, head = heads[name]
        params.blocks.attn.W_Q[layer, token, head, :2] = 4 * SHARP * np.array([1.0, 0.0])
        # Turned back by its distance, the key that stands `back` before the query points as the query does.
        params.blocks.attn.W_K[layer, token, head, :2] = [np.cos(back), np.sin(back)]
    layer, head = heads["previous"]
    params.blocks.attn.W_V[layer, token, head, attn] = np.eye(V)
    params.blocks.attn.W_O[layer, head, attn, answer] = np.eye(V)
    params.W_E[:, token] = params.W_U[answer] = np.eye(V)
    return Circuit(_arrays(params, dtype), config, heads)


def copying(dtype: Any = jnp.float32) -> Circuit:
    """One layer of heads that look everywhere alike and differ in what they make of a token.

    One raises the logit of each token that it sees, one lowers it, one raises that of the token after it in
    the vocabulary, and one does nothing at all. The eigenvalues of their OV circuits are 1, -1, the seventh
    roots of one, whose sum is 0, and 0.
    """
    config = Config(
        n_layers=1, d_model=2 * V, n_heads=4, d_head=V, d_mlp=0, n_vocab=V, attention_scale=1.0
    )
    params = _blank(config)
    token, answer = slice(0, V), slice(V, 2 * V)
    heads = {"copies": (0, 0), "suppresses": (0, 1), "shifts": (0, 2), "silent": (0, 3)}
    made = {"copies": np.eye(V), "suppresses": -np.eye(V), "shifts": np.roll(np.eye(V), 1, axis=1)}
    for name, matrix in made.items():
        layer, head = heads[name]
        params.blocks.attn.W_V[layer, token, head] = np.eye(V)
        params.blocks.attn.W_O[layer, head, :, answer] = matrix
    params.W_E[:, token] = params.W_U[answer] = np.eye(V)
    return Circuit(_arrays(params, dtype), config, heads)


FIRST, SECOND, THEN = 2, 5, 3
"""The AND's two features, the token before and the token itself, and what it answers if it sees both."""
AND, OR, ONE = 1, 0, 2
"""Neurons."""


def conjunction(dtype: Any = jnp.float32) -> Circuit:
    """One block: after FIRST SECOND it says THEN. An attention head brings two features together, a neuron ANDs them.

    The previous-token head writes into PREVIOUS, and neuron AND reads PREVIOUS[FIRST] + TOKEN[SECOND] - 1, which
    the relu leaves above 0 only where both are there. The 1 that is taken off needs no bias: of a token's POSITION
    coordinates exactly one is 1, so that reading all of them gives it.
    The other neurons, an OR (without the 1) and one that sees SECOND alone, write into SPARE.
    """
    config = _learned(n_layers=1, d_mlp=3)
    params = _blank(config)
    heads = {"previous": (0, 0), "current": (0, 1)}
    _look_back(params, *heads["previous"], back=1)
    _move(params, *heads["previous"], TOKEN, PREVIOUS)
    _look_back(params, *heads["current"], back=0)
    mlp = params.blocks.mlp
    for neuron in (AND, OR):
        mlp.W_in[0, PREVIOUS.start + FIRST, neuron] = 1.0
        mlp.W_in[0, TOKEN.start + SECOND, neuron] = 1.0
    mlp.W_in[0, TOKEN.start + SECOND, ONE] = 1.0
    mlp.W_in[0, POSITION, AND] = -1.0
    mlp.W_out[0, AND, ANSWER.start + THEN] = 1.0
    mlp.W_out[0, [OR, ONE], [SPARE.start, SPARE.start + 1]] = 1.0
    return Circuit(_arrays(params, dtype), config, heads)


def _look_back(params: Any, layer: int, head: int, back: int) -> None:
    """A token at place p asks for the place p - back; where there is none, it asks for nothing."""
    attn = params.blocks.attn
    attn.W_Q[layer, POSITION, head, BY_PLACE] = SHARP * np.eye(C, k=-back)
    attn.W_K[layer, POSITION, head, BY_PLACE] = np.eye(C)


def _look_at_duplicate(params: Any, layer: int, head: int) -> None:
    """A token asks for itself; for its own place half as much, so that an earlier one comes first."""
    attn = params.blocks.attn
    attn.W_Q[layer, TOKEN, head, BY_TOKEN] = SHARP * np.eye(V)
    attn.W_K[layer, TOKEN, head, BY_TOKEN] = np.eye(V)
    attn.W_Q[layer, POSITION, head, BY_PLACE] = -SHARP / 2 * np.eye(C)
    attn.W_K[layer, POSITION, head, BY_PLACE] = np.eye(C)


def _look_after_same(params: Any, layer: int, head: int) -> None:
    """A token asks for one that stands after its like; failing that it stays at its own place, for half the score.

    The very first has none before it and was told of itself: its key takes back every answer.
    """
    attn = params.blocks.attn
    attn.W_Q[layer, TOKEN, head, BY_TOKEN] = SHARP * np.eye(V)
    attn.W_K[layer, PREVIOUS, head, BY_TOKEN] = np.eye(V)
    attn.W_K[layer, POSITION.start, head, BY_TOKEN] = -1.0
    attn.W_Q[layer, POSITION, head, BY_PLACE] = SHARP / 2 * np.eye(C)
    attn.W_K[layer, POSITION, head, BY_PLACE] = np.eye(C)


def _move(params: Any, layer: int, head: int, reads: slice, writes: slice) -> None:
    """The OV circuit: copy one subspace of the token looked at to another of the token that looks."""
    params.blocks.attn.W_V[layer, reads, head, BY_TOKEN] = np.eye(V)
    params.blocks.attn.W_O[layer, head, BY_TOKEN, writes] = np.eye(V)


def _learned(n_layers: int, d_mlp: int) -> Config:
    return Config(
        n_layers=n_layers, d_model=4 * V + C, n_heads=2, d_head=V + C, d_mlp=d_mlp, n_vocab=V,
        position="learned", n_context=C, attention_scale=1.0,
    )  # fmt: skip


def _blank(config: Config) -> Any:
    """Zeros, in arrays that can be written into; with one-hot embeddings where positions are learned."""
    params = jax.tree.map(lambda shape: np.zeros(shape.shape), abstract(config))
    if params.W_pos is not None:
        params.W_E[:, TOKEN] = params.W_U[ANSWER] = np.eye(V)
        params.W_pos[:, POSITION] = np.eye(C)
    return params


def _arrays(params: Any, dtype: Any) -> Params:
    return jax.tree.map(lambda array: jnp.asarray(array, dtype), params)
