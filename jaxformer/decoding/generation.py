"""Generation in one compiled program: a forward pass reads the prompts, then there is one pass per token."""

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxformer.checks import positive_integer
from jaxformer.config import Compute, Config
from jaxformer.decoding.inputs import Prompts, bucket, check_room, gather
from jaxformer.decoding.loop import decode, initial_state, sample_first
from jaxformer.decoding.prefill import cast_params, check_edit_of_passes
from jaxformer.decoding.request import Program, Request, make_program, make_request, with_edit
from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.stacking import unstack
from jaxformer.model.checks import check_order, check_params
from jaxformer.model.params import Params
from jaxformer.model.tap import compiled
from jaxformer.sites import Edit, EditFunction, activation_axis, identity


class Generated(NamedTuple):
    """The tokens that `generate` adds to a prompt. For a batch, every array has an axis `b` in front.

    After the end of a sequence, its tokens are -1 and everything else is 0.
    """

    tokens: Int[Array, "*b new"]
    log_probs: Float[Array, "*b new"]  # under the model's distribution, before any processor
    activations: dict[str, Array]  # axes as `forward` returns them; t: the generated tokens

    def texts(self, tokenizer: Any) -> Any:
        """Decode the tokens: one text, or a list of them for each axis before the last."""

        def decoded(tokens: Any) -> Any:
            return [decoded(row) for row in tokens] if tokens.ndim > 1 else tokenizer.decode(tokens)

        return decoded(np.asarray(self.tokens))

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
    temperature: Any = None,
    sampling: Sampling = Sampling(),
    stop: Any = None,
    edit: Edit = identity,
    edit_from: Any = None,
    capture: Iterable[str] = (),
    compute: Compute = Compute(),
) -> Generated:
    """Generate the tokens that follow a prompt, or each prompt of a batch.

    One compiled program serves all prompt lengths and all n_tokens that round up to the same powers of two (at least
    16). Another batch size, config, edit, capture or compute recompiles. So does a change of the number or length of
    stop sequences, of which fields of Sampling are None, of whether edit_from is None, and of whether all prompts have
    the same length. The decoding loop runs unstacked layers (see `unstack`), so compile time grows with depth.

    Args:
        prompt: token ids `t`; a batch of them `b t`; or a list of prompts of any lengths. Each prompt of a batch
            gives the tokens that it would give alone.
        n_tokens: the most tokens to generate.
        key: one key (prompt i of a batch then uses fold_in(key, i)), or one per prompt; token j is sampled with
            fold_in(its prompt's key, j).
        temperature: short for sampling=Sampling(temperature=...); 0 is greedy.
        sampling: how a token is chosen.
        stop: a token id, a sequence of them, or several sequences. A sequence is done once it ends in any of them.
        edit: as in `forward`: another number in one of `jaxformer.interp.edit` does not recompile, a function does at
            every call. It receives the prompt padded at the end to a power of two (if every layer has a window, long
            prompts come in pieces), then one position at a time. What it changes in the padding is undone.
        edit_from: the first generated token that the edit may change, or one number per prompt. The edit then acts
            from the position whose logits give this token. None: from the first position of the prompt.
        capture: sites to return for each generated token, at the position whose logits gave it. The axis s of
            scores and pattern is the cache's rows: row p holds position p; in a rolling cache (every layer has a
            window), position p is stored in row p modulo the number of rows.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, n_tokens below 1, more tokens than the position
            table holds, NaN logits, and what `forward` refuses.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> params = jaxformer.init(config, jax.random.key(0))
    >>> out = generate(params, config, [[3], [1, 4]], 6, jax.random.key(1), capture=("resid_post",))
    >>> out.tokens.shape, out.activations["resid_post"].shape
    ((2, 6), (2, 2, 6, 8))
    """
    check_order(params, config)
    program, sampling = make_program(config, capture, compute), sampling.at(temperature)
    prompts, arguments = _arguments(
        params, program, prompt, n_tokens, key, sampling, stop, edit, edit_from
    )
    out = compiled(_generate, edit, static=STATIC)(**arguments)
    out = _trim(out, config, prompts, int(arguments["limit"]))
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
    """Lower the program that `generate` runs for these arguments. Its `compile()` reports the memory that it needs.

    Only the shapes and dtypes of params are used, so params may be `abstract`.

    >>> import jaxformer
    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> program = lower(jaxformer.abstract(config), config, [[3], [1]], 6, jax.random.key(1))
    >>> program.compile().memory_analysis().output_size_in_bytes > 2 * 6 * 4
    True
    """
    check_order(params, config)
    call = inspect.signature(generate).bind(params, config, prompt, n_tokens, key, **options)
    call.apply_defaults()
    given = call.arguments
    program = make_program(config, given["capture"], given["compute"])
    rest = given["sampling"].at(given["temperature"]), given["stop"], given["edit"], given["edit_from"]  # fmt: skip
    _, arguments = _arguments(params, program, prompt, n_tokens, key, *rest)
    run: Any = compiled(_generate, given["edit"], static=STATIC)
    edits = getattr(run, "args", ())  # a partial, of a program that several edits share
    return getattr(run, "func", run).lower(*edits, **arguments)


def _arguments(
    params: Params,
    program: Program,
    prompt: Any,
    n_tokens: Any,
    key: Any,
    sampling: Sampling,
    stop: Any,
    edit: Edit,
    edit_from: Any,
) -> tuple[Prompts, dict[str, Any]]:
    """Check a call; return its prompts and the arguments of `_generate`."""
    config = program.config
    prompts = gather(prompt, config)
    n_tokens = positive_integer("n_tokens", n_tokens)
    check_room(config, prompts.longest, n_tokens)
    request = make_request(config, prompts, key, sampling, stop, edit_from)
    check_params(params, config)
    room = bucket(n_tokens)
    check_edit_of_passes(edit, program, prompts.tokens.shape[1], room)
    return prompts, {
        "params": params,
        "program": program,
        "request": request,
        "prompts": prompts.tokens,
        "lengths": prompts.lengths,
        "limit": np.int32(n_tokens),
        "room": room,
        "single": prompts.single,
    }


STATIC = ("program", "room", "single")
"""The static arguments of `_generate`."""


def _generate(
    edit: EditFunction,
    params: Params,
    request: Request,
    prompts: Int[Array, "b t"],
    lengths: Int[Array, "..."],
    limit: Int[Array, ""],
    *,
    program: Program,
    room: int,
    single: bool,
) -> Generated:
    params = cast_params(params, program.compute)
    request = with_edit(request, edit)
    request = request._replace(keys=sequence_keys(request.keys, len(prompts), single))
    state = initial_state(program, request, prompts, lengths)
    state, first = sample_first(params, program, request, state, prompts, lengths, room=room)
    sampled = decode(unstack(params), program, request, state, limit, room=room, first=first)[1]
    activations = {
        site: jnp.moveaxis(values, 0, 1 + activation_axis(site))
        for site, values in sampled.activations.items()
    }
    out = Generated(sampled.tokens.T, sampled.log_probs.T, activations)
    return jax.tree.map(lambda array: array[0], out) if single else out


def _trim(out: Generated, config: Config, prompts: Prompts, n_tokens: int) -> Generated:
    """Drop what the program computed beyond n_tokens, because sizes are rounded up."""

    def trim(site: str, values: Array) -> Array:
        values = jax.lax.slice_in_dim(
            values, 0, n_tokens, axis=activation_axis(site) + (not prompts.single)
        )
        if site in ("scores", "pattern") and config.max_lookback is None:
            values = values[..., : prompts.longest + n_tokens - 1]
        return values

    if out.tokens.shape[-1] > n_tokens:
        out = Generated(out.tokens[..., :n_tokens], out.log_probs[..., :n_tokens], out.activations)
    return out._replace(activations={s: trim(s, values) for s, values in out.activations.items()})


def sequence_keys(keys: Key[Array, "*b"], batch: int, single: bool) -> Key[Array, " b"]:
    """Return one key per sequence; a single prompt uses the given key itself."""
    if keys.ndim:
        return keys
    if single:
        return keys[None]
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(keys, jnp.arange(batch))


NAN_ADVICE = "look for NaN or infinity in the parameters, or in what the edit returns"


def check_finite(log_probs: Float[Array, "*b new"], before: int = 0) -> None:
    """Refuse tokens that were sampled from NaN logits. Traced values cannot be checked.

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
            f"the logits are NaN at generated token {before + token} of prompt {prompt}; {NAN_ADVICE}"
        )
