"""Each parameter declared once: from its `Spec` come its value, its shape and its size.

The initial values preserve variance, so that a model of any depth and width trains with or without
norms. Every state starts with coordinates of variance 1 and keeps a variance of order 1:

- the embedding writes rows of variance 1;
- a matrix that reads a vector of unit variance draws from N(0, 1/fan_in), so that what it computes has
  unit variance (LeCun et al. 1998, "Efficient BackProp", §4.6), where fan_in is the product of the
  axes that it sums over;
- what it computes then passes a nonlinearity whose second moment is m = E[φ(x)²], x ~ N(0, 1); the
  matrix behind it draws with a further gain 1/√m (He et al. 2015, "Delving Deep into Rectifiers", §2.2);
- a matrix that writes to the stream draws with a further gain 1/√(number of writes), so that all the
  updates of a model together weigh as much as its embedding (Radford et al. 2019, GPT-2, §2.3). Where
  nothing norms the stream its variance thereby grows like (1 + 1/writes)^writes, to at most e.
"""

import math
import zlib
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxformer.config import Config

Tree = TypeVar("Tree")
Stand = Any  # a Spec, standing in a params tuple where its array will stand


class Spec(NamedTuple):
    """One parameter: the letters of its axes, their sizes, and how to draw its first value.

    `reads` are the axes that its use sums over (its fan-in); the others, but the layer axis, are
    written. A bias or a norm's weight reads nothing. A first value is `mean + std·N(0, 1)`.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    reads: tuple[str, ...]
    mean: float
    std: float


def matrix(config: Config, axes: str, reads: str, gain: float = 1.0) -> Stand:
    """A linear map: `gain²/fan_in` is the variance of its entries.

    >>> config = Config(n_layers=2, d_model=64, n_heads=2, d_head=32, d_mlp=16, n_vocab=5)
    >>> matrix(config, "l d f", reads="d")
    Spec(axes=('l', 'd', 'f'), shape=(2, 64, 16), reads=('d',), mean=0.0, std=0.125)
    """
    fan_in = math.prod(config.sizes[axis] for axis in reads.split())
    return _spec(config, axes, reads, std=gain / math.sqrt(fan_in))


def table(config: Config, axes: str, std: float = 1.0) -> Stand:
    """Rows looked up, not multiplied: nothing is summed over."""
    return _spec(config, axes, reads="", std=std)


def constant(config: Config, axes: str, value: float) -> Stand:
    """A bias (0) or a norm's weight (1)."""
    return _spec(config, axes, reads="", mean=value)


def write_gain(config: Config) -> float:
    """1/√(number of layers that write to the stream), the share of each in the final state."""
    writes = config.n_layers * (2 if config.d_mlp else 1)
    return 1 / math.sqrt(max(writes, 1))


class Growth(NamedTuple):
    """An activation's E[φ(x)²] for x ~ N(0, 1), and the power of x that it grows with."""

    second_moment: float
    degree: int = 1


GROWTHS = {
    "relu": Growth(0.5),
    "gelu": Growth(0.4252215),
    "gelu_tanh": Growth(0.4251937),
    "silu": Growth(0.3557762),
    "relu_squared": Growth(1.5, degree=2),
}


def mlp_gain(config: Config) -> float:
    """The gain of the MLP's writing matrix: a layer's share, with the activation's second moment divided out.

    Without norms the stream's variance grows to about e over the depth, and neurons of degree p would
    write e^p of it there: their gain is smaller by e^((1 - p)/2), so that no stream feeds on itself.
    """
    growth = GROWTHS[config.activation]
    gain = write_gain(config) / growth.second_moment**0.5
    if config.norm == "none":
        gain *= math.exp((1 - growth.degree - config.gated) / 2)
    return gain


def _spec(config: Config, axes: str, reads: str, mean: float = 0.0, std: float = 0.0) -> Spec:
    letters = tuple(axes.split())
    shape = tuple(config.sizes[letter] for letter in letters)
    return Spec(letters, shape, tuple(reads.split()), mean, std)


def is_spec(node: Any) -> bool:
    """Whether a node of a tree is a declaration: a leaf, though it is a tuple."""
    return isinstance(node, Spec)


def path_name(path: Any) -> str:
    """A parameter's name from its path in the tree: `blocks.attn.W_Q`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def draw(specs: Tree, key: Key[Array, ""], dtype: Any = jnp.float32) -> Tree:
    """First values for a tree of Specs. A parameter's draw depends on key, name and shape only."""

    def value(path: Any, spec: Spec) -> Array:
        own = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        if not spec.std:
            return jnp.full(spec.shape, spec.mean, dtype)
        return spec.mean + spec.std * jax.random.normal(own, spec.shape, dtype)

    return jax.tree_util.tree_map_with_path(value, specs, is_leaf=is_spec)


def shapes(specs: Tree, dtype: Any = jnp.float32) -> Tree:
    """The tree as `jax.ShapeDtypeStruct`s: what it would hold, with nothing allocated."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), specs, is_leaf=is_spec)


def size(specs: Any) -> int:
    """The number of parameters in a tree of Specs."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(specs, is_leaf=is_spec))
