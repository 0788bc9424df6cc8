"""FLOPs of a program: from the sizes of a model, or counted in a traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval

from jaxformer.config import Config


def forward_flops(config: Config, context: int, past: int = 0) -> int:
    """Return the FLOPs of the matrix products in one sequence's forward pass, two per multiply-add.

    Attention is counted over all `past + context` keys, including the masked half. Norms, softmax, positions and
    activations are left out, as is usual; they are below 2 % at the benchmarked sizes.
    """
    size = config.sizes
    d, heads, kv = size["d"], size["n"] * size["h"], size["k"] * size["h"]
    projections = d * heads + 2 * d * kv + heads * d
    mixing = 2 * (past + context) * heads
    mlp = (3 if config.gated else 2) * d * size["f"]
    per_token = size["l"] * (projections + mixing + mlp) + d * size["v"]
    return 2 * context * per_token


def train_flops(config: Config, context: int) -> int:
    """Return the FLOPs per sequence of a training step: the backward pass has two products per forward product."""
    return 3 * forward_flops(config, context)


def program_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the FLOPs of all matrix products of a function, on all devices together, two per multiply-add.

    They are counted in the traced program: what `jax.checkpoint` recomputes counts twice, and what nothing reads does
    not count. The body of a loop counts once per iteration (once in all in XLA's `cost_analysis`); of the branches of a
    condition, the most expensive one counts. Ragged products, convolutions and custom kernels (Pallas, cuDNN) are left
    out.

    Args:
        function: is traced, but not run.
        arguments: arrays, or their `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: a while loop with matrix products, whose number of iterations depends on values.

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
    """A call counts the called functions once."""
    return sum(_flops(jaxpr) for jaxpr in _called(eqn))


def _product(eqn: JaxprEqn) -> int:
    """Each entry of the result has one multiply-add per pair that is summed over."""
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
            f"a while loop of the program has matrix products of {flops:,} FLOPs per iteration, and its number of "
            "iterations is unknown before it runs; use jax.lax.scan, or count the body of the loop"
        )
    return 0


def _each_device(eqn: JaxprEqn) -> int:
    """The body of a shard_map is the program of one device, so it counts once per device of the mapped mesh axes."""
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
"""How to count each JAX primitive, by name."""


def _called(eqn: JaxprEqn) -> list[Jaxpr]:
    return [getattr(found, "jaxpr", found) for found in jaxprs_in_params(eqn.params)]
