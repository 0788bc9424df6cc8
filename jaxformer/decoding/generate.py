"""Generation: a prompt is read in one forward pass, then each token in one of its own, compiled together."""

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.decoding.inputs import (
    Prompts,
    bucket,
    check_edit_from,
    check_key,
    check_room,
    gather,
    gather_stops,
)
from jaxformer.decoding.loop import Wish, decode, fresh, prefill
from jaxformer.decoding.prefill import How, narrowed
from jaxformer.decoding.sampling import Sampling
from jaxformer.model.params import Params, check_params, unstack
from jaxformer.model.sites import Edit, activation_axis, keep
from jaxformer.model.tap import check_capture, check_edit


class Generated(NamedTuple):
    """What `generate` adds to a prompt; with `b` in front if it was given a batch.

    Where a sequence has stopped, its tokens are -1 and everything else is 0.
    """

    tokens: Int[Array, "*b n"]
    log_probs: Float[Array, "*b n"]  # of each token, in the model's own distribution
    activations: dict[str, Array]  # laid out as forward's, t being the generated tokens

    @property
    def lengths(self) -> Int[Array, "*b"]:
        """The number of tokens generated, those of a stop sequence included."""
        return jnp.sum(self.tokens >= 0, axis=-1)


def generate(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: int,
    key: Key[Array, "*b"],
    *,
    sampling: Sampling = Sampling(),  # noqa: B008  frozen
    stop: Any = None,
    edit: Edit = keep,
    edit_from: Any = None,
    capture: Iterable[str] = (),
    compute: Compute = Compute(),  # noqa: B008  frozen
) -> Generated:
    """The tokens that follow a prompt, or each prompt of a batch.

    The prompt's length and n_tokens are rounded up to powers of two, at least 16; each pair of those is compiled
    once. So is each size of a batch (apart for prompts that differ in length), each choice of fields that a
    Sampling sets, each number and length of stops, with edit_from and without, and each edit, capture and
    compute. Decoding runs its layers one by one (see `unstack`): compiling takes longer the deeper the model.

    Args:
        prompt: token ids `t`; a batch of them `b t`; or a list of prompts of any lengths, of which each
            goes on as it would alone.
        n_tokens: how many to add, at most.
        key: one for all (prompt i of a batch then draws with fold_in(key, i)) or one for each; token j is
            drawn with fold_in(its prompt's key, j).
        sampling: how a token is chosen.
        stop: a token id, a sequence of them, or several sequences; a prompt ends once it has generated one.
        edit: as in `forward`, but a hashable function: a new one is compiled anew, and what it reads from outside
            is what it was then. It sees the prompt filled up behind to a power of two (with a window: in pieces, if
            it is long), then one position at a time; what it does to the filling is undone.
        edit_from: the first generated token that the edit may change, by acting on the position whose
            logits give it, or one such number for each prompt; None: it acts on every position, the prompt's too.
        capture: sites to return for each generated token, of the position whose logits gave it. Scores and
            pattern have along s the rows of the cache: the positions, or with a window p modulo their number.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, n_tokens below 1, more than the position
            table holds, logits that are NaN, and all that `forward` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = generate(params, config, [[3], [1, 4]], 6, jax.random.key(1), capture=("resid_post",))
    >>> out.tokens.shape, out.activations["resid_post"].shape
    ((2, 6), (2, 2, 6, 8))
    """
    prompts, asked = _asked(
        params, config, prompt, n_tokens, key, sampling, stop, edit, edit_from, capture, compute
    )
    out = _cut(_generate(**asked), config, prompts, int(asked["limit"]))
    check_finite(out.log_probs)
    return out


def lower(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: int,
    key: Key[Array, "*b"],
    **options: Any,
) -> jax.stages.Lowered:
    """The program that `generate` runs for the same arguments, not run: its `compile()` tells its memory.

    Of params only shapes and dtypes are read, so `abstract` ones will do.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> program = lower(jaxformer.abstract(config), config, [[3], [1]], 6, jax.random.key(1))
    >>> program.compile().memory_analysis().output_size_in_bytes > 2 * 6 * 4
    True
    """
    call = inspect.signature(generate).bind(params, config, prompt, n_tokens, key, **options)
    call.apply_defaults()
    return _generate.lower(**_asked(*call.arguments.values())[1])


def _asked(
    params: Params,
    config: Config,
    prompt: Any,
    n_tokens: Any,
    key: Any,
    sampling: Sampling,
    stop: Any,
    edit: Edit,
    edit_from: Any,
    capture: Iterable[str],
    compute: Compute,
) -> tuple[Prompts, dict[str, Any]]:
    """The prompts, and the arguments of the compiled program, all checked."""
    how = gather_how(config, edit, capture, compute)
    prompts = gather(prompt, config)
    n_tokens = positive_integer("n_tokens", n_tokens)
    check_room(config, prompts.longest, n_tokens)
    wish = gather_wish(config, prompts, key, sampling, stop, edit_from)
    check_params(params, config)
    return prompts, {
        "params": params,
        "how": how,
        "wish": wish,
        "prompts": prompts.tokens,
        "lengths": prompts.lengths,
        "limit": np.int32(n_tokens),
        "room": bucket(n_tokens),
        "single": prompts.single,
    }


@partial(jax.jit, static_argnames=("how", "room", "single"))
def _generate(
    params: Params,
    how: How,
    wish: Wish,
    prompts: Int[Array, "b t"],
    lengths: Int[Array, "..."],
    limit: Int[Array, ""],
    *,
    room: int,
    single: bool,
) -> Generated:
    params = narrowed(params, how.compute)
    wish = wish._replace(keys=own_keys(wish.keys, len(prompts), single))
    state = fresh(how, wish, prompts, lengths)
    state, first = prefill(params, how, wish, state, prompts, lengths, room=room)
    drawn = decode(unstack(params), how, wish, state, limit, room=room, first=first)[1]
    activations = {
        site: jnp.moveaxis(values, 0, 1 + activation_axis(site))
        for site, values in drawn.activations.items()
    }
    out = Generated(drawn.tokens.T, drawn.log_probs.T, activations)
    return jax.tree.map(lambda array: array[0], out) if single else out


def _cut(out: Generated, config: Config, prompts: Prompts, n_tokens: int) -> Generated:
    """What was asked for, of what was rounded up."""

    def cut(site: str, values: Array) -> Array:
        values = jax.lax.slice_in_dim(
            values, 0, n_tokens, axis=activation_axis(site) + (not prompts.single)
        )
        if site in ("scores", "pattern") and config.horizon is None:
            values = values[..., : prompts.longest + n_tokens - 1]
        return values

    if out.tokens.shape[-1] > n_tokens:
        out = Generated(out.tokens[..., :n_tokens], out.log_probs[..., :n_tokens], out.activations)
    return out._replace(activations={s: cut(s, values) for s, values in out.activations.items()})


def own_keys(keys: Key[Array, "*b"], batch: int, single: bool) -> Key[Array, " b"]:
    """A key for each sequence: a lone prompt's is the one given."""
    if keys.ndim:
        return keys
    if single:
        return keys[None]
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(keys, jnp.arange(batch))


def gather_how(config: Config, edit: Edit, capture: Iterable[str], compute: Compute) -> How:
    """What to compile for.

    Raises:
        ValueError: a site that this model does not show, or an edit of one.
    """
    capture = capture if isinstance(capture, str) else tuple(capture)
    check_capture(capture, config, compute)
    check_edit(edit, config, compute)
    return How(config=config, edit=edit, capture=tuple(capture), compute=compute)


def gather_wish(
    config: Config, prompts: Prompts, key: Any, sampling: Sampling, stop: Any, edit_from: Any
) -> Wish:
    """What one call asks of the program.

    Raises:
        ValueError: a key that is none, a stop sequence that is none, a number out of range.
    """
    since = None
    if edit_from is not None:
        check_edit_from(edit_from, prompts)
        since = prompts.lengths - 1 + _capped(edit_from)
    return Wish(
        keys=check_key(key, prompts),
        sampling=sampling.fitted(config),
        stops=gather_stops(stop, config),
        since=since,
    )


def _capped(number: Any) -> Any:
    """As int32, with room to add a length: a number that stands for never must not become negative."""
    most = 2**30
    if not isinstance(number, jax.core.Tracer):
        return np.minimum(np.asarray(number), most).astype(np.int32)
    number = number if number.dtype.itemsize >= 4 else number.astype(jnp.int32)
    return jnp.minimum(number, most).astype(jnp.int32)


WHERE_NAN_IS = "look for NaN or infinity in the parameters, or in what the edit returns"


def check_finite(log_probs: Float[Array, "*b n"], before: int = 0) -> None:
    """Refuse tokens drawn from logits that are NaN; traced values cannot be looked at.

    Args:
        log_probs: of the tokens.
        before: the number of tokens generated before these.

    Raises:
        ValueError: naming the first such token and its prompt.
    """
    if isinstance(log_probs, jax.core.Tracer):
        return
    values = np.asarray(log_probs)
    if np.isnan(values).any():
        prompt, token = np.argwhere(np.isnan(np.atleast_2d(values)))[0]
        raise ValueError(
            f"the logits are NaN at generated token {before + token} of prompt {prompt}; {WHERE_NAN_IS}"
        )
