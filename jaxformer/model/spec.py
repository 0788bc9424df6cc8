"""Specs: each parameter is declared once, and its initial value, shape and size follow from that.

The initial values preserve variance, so that a model of any depth and width trains, with norms or without:

- the embedding has variance 1;
- a matrix is drawn from N(0, 1/fan_in), where fan_in is the product of the sizes of the axes that it sums over
  (LeCun et al. 1998, "Efficient BackProp", §4.6);
- the matrix after a nonlinearity φ has a further gain 1/√E[φ(x)²], x ~ N(0, 1) (He et al. 2015, "Delving Deep into
  Rectifiers", §2.2);
- a matrix that writes to the stream has a further gain 1/√(number of writes), so that all updates together weigh as
  much as the embedding (Radford et al. 2019, GPT-2, §2.3). Without norms, the stream's variance grows at most e-fold.
"""

import math
import zlib
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxformer.config import Config

Tree = TypeVar("Tree")
Stand = Any  # a Spec, in place of the array that the NamedTuple annotates


class Spec(NamedTuple):
    """One parameter: the letters of its axes, their sizes, and its initial value, mean + std·N(0, 1).

    `reads` are the axes that it sums over where it is used. Biases and the weights of norms read none.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    reads: tuple[str, ...]
    mean: float
    std: float


def matrix(config: Config, axes: str, reads: str, gain: float = 1.0) -> Stand:
    """Declare a linear map, whose entries have variance gain²/fan_in.

    >>> config = Config(n_layers=2, d_model=64, n_heads=2, d_head=32, d_mlp=16, n_vocab=5)
    >>> matrix(config, "l d f", reads="d")
    Spec(axes=('l', 'd', 'f'), shape=(2, 64, 16), reads=('d',), mean=0.0, std=0.125)
    """
    fan_in = math.prod(config.sizes[axis] for axis in reads.split())
    return _spec(config, axes, reads, std=gain / math.sqrt(fan_in))


def table(config: Config, axes: str, std: float = 1.0) -> Stand:
    """Declare rows that are looked up, so that nothing is summed over."""
    return _spec(config, axes, std=std)


def constant(config: Config, axes: str, value: float) -> Stand:
    """Declare a bias (0) or the weight of a norm (1)."""
    return _spec(config, axes, mean=value)


def _spec(config: Config, axes: str, reads: str = "", mean: float = 0.0, std: float = 0.0) -> Spec:
    letters = tuple(axes.split())
    shape = tuple(config.sizes[letter] for letter in letters)
    return Spec(letters, shape, tuple(reads.split()), mean, std)


def write_gain(config: Config) -> float:
    """Return 1/√(number of layers that write to the stream)."""
    return 1 / math.sqrt(max(config.n_layers * (2 if config.d_mlp else 1), 1))


MOMENTS = {
    "relu": (0.5, 1), "gelu": (0.4252215, 1), "gelu_tanh": (0.4251937, 1), "silu": (0.3557762, 1),
    "relu_squared": (1.5, 2),
}  # fmt: skip
"""E[φ(x)²], x ~ N(0, 1), of each activation, and the degree with which φ grows."""


def mlp_gain(config: Config) -> float:
    """Return the gain of W_out: `write_gain`, divided by the root of the activation's second moment.

    Without norms, neurons of degree p would raise the stream's variance to about e^p; e^((1 - p)/2) reduces that to e.
    """
    second_moment, degree = MOMENTS[config.activation]
    gain = write_gain(config) / second_moment**0.5
    return gain * (math.exp((1 - degree - config.gated) / 2) if config.norm == "none" else 1)


def is_spec(node: Any) -> bool:
    """Say whether a node of a tree is a Spec, which is a leaf although it is a tuple."""
    return isinstance(node, Spec)


def path_name(path: Any) -> str:
    """Return a parameter's name, `blocks.attn.W_Q`, from its path in the tree."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def draw(specs: Tree, key: Key[Array, ""], dtype: Any = jnp.float32) -> Tree:
    """Draw initial values for a tree of Specs; each depends only on the key and on its parameter's name and shape."""

    def value(path: Any, spec: Spec) -> Array:
        own = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        if not spec.std:
            return jnp.full(spec.shape, spec.mean, dtype)
        return spec.mean + spec.std * jax.random.normal(own, spec.shape, dtype)

    return jax.tree_util.tree_map_with_path(value, specs, is_leaf=is_spec)
