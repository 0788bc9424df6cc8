"""How much arithmetic a program is: by the formula of a model's sizes, or counted in what JAX traced."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval

from jaxformer.config import Config


def forward_flops(config: Config, context: int, past: int = 0) -> int:
    """Floating-point operations of one sequence's forward pass: two per multiply-add of every matrix product.

    Attention is counted as computed, the masked half included, over `past + context` keys. Norms, softmax,
    positions and activations are left out, as is usual: they are below 2 % at the sizes benchmarked.
    """
    size = config.sizes
    d, heads, kv = size["d"], size["n"] * size["h"], size["k"] * size["h"]
    projections = d * heads + 2 * d * kv + heads * d
    mixing = 2 * (past + context) * heads
    mlp = (3 if config.gated else 2) * d * size["f"]
    per_token = size["l"] * (projections + mixing + mlp) + d * size["v"]
    return 2 * context * per_token


def train_flops(config: Config, context: int) -> int:
    """Of a training step: the backward pass has two products for each one of the forward pass."""
    return 3 * forward_flops(config, context)


def program_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of all matrix products of a function, on all devices together: two per multiply-add.

    XLA's own count (`cost_analysis`) has a scan's body once, however often it turns. These are counted in the traced
    program, so that what `jax.checkpoint` computes a second time counts twice, and what nothing reads not at all. A
    loop counts as often as it turns, of the branches of a condition the most expensive. Ragged products, convolutions
    and what kernels of their own do (Pallas, cuDNN) are left out.

    Args:
        function: is traced, not run.
        arguments: arrays, or their `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: a loop that multiplies matrices, and turns as often as its values say.

    >>> a, b = jax.ShapeDtypeStruct((3, 5), "float32"), jax.ShapeDtypeStruct((5, 7), "float32")
    >>> program_flops(lambda a, b: a @ b, a, b)  # 2 · 3 · 5 · 7
    210
    """
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    read, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return _flops(read)


def _flops(jaxpr: Jaxpr) -> int:
    return sum(RULES.get(eqn.primitive.name, _inside)(eqn) for eqn in jaxpr.eqns)


def _inside(eqn: JaxprEqn) -> int:
    """A call: what is called, once."""
    return sum(_flops(jaxpr) for jaxpr in _called(eqn))


def _product(eqn: JaxprEqn) -> int:
    """An entry of the result has a multiply-add for each pair that is summed over."""
    (summed, _), _ = eqn.params["dimension_numbers"]
    left: Any = eqn.invars[0].aval
    result: Any = eqn.outvars[0].aval
    return 2 * math.prod(result.shape) * math.prod(left.shape[axis] for axis in summed)


def _loop(eqn: JaxprEqn) -> int:
    return eqn.params["length"] * _inside(eqn)


def _branches(eqn: JaxprEqn) -> int:
    return max(_flops(jaxpr) for jaxpr in _called(eqn))


def _open_loop(eqn: JaxprEqn) -> int:
    if flops := _inside(eqn):
        raise ValueError(
            f"a while loop of the program has products of {flops:,} floating-point operations a turn, and "
            "how often it turns is known only when it runs; use jax.lax.scan, or count the turn's function"
        )
    return 0


def _each_device(eqn: JaxprEqn) -> int:
    """A shard_map's body is the program of one device of the mesh axes that it maps."""
    sizes = eqn.params["mesh"].shape
    return math.prod(sizes[axis] for axis in eqn.params["newly_manual_axes"]) * _inside(eqn)


RULES: dict[str, Callable[[JaxprEqn], int]] = {
    "dot_general": _product,
    "scan": _loop,
    "cond": _branches,
    "while": _open_loop,
    "shard_map": _each_device,
    "pallas_call": lambda _: 0,
}
"""By the names of JAX's primitives."""


def _called(eqn: JaxprEqn) -> list[Jaxpr]:
    return [getattr(found, "jaxpr", found) for found in jaxprs_in_params(eqn.params)]
