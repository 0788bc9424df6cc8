"""What a model is (`Config`) and how it is run (`Compute`): plain, frozen, hashable data."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

Position = Literal["none", "sinusoidal", "learned", "rotary"]
NormKind = Literal["none", "layer", "rms"]
ActivationKind = Literal["relu", "gelu", "gelu_tanh", "silu", "relu_squared"]
Bias = Literal["none", "qkv", "all"]
DType = Literal["float16", "bfloat16", "float32", "float64"]
Kernel = Literal["einsum", "blocked", "fused"]
Remat = Literal["none", "block", "dots"]
CacheDType = Literal["int8", "float16", "bfloat16", "float32", "float64"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture of a model: six sizes, then one named choice for each thing later GPTs added.

    Every choice defaults to the seed model's: no positions, no norms, no biases. The value is
    static under `jit`: a function compiles once for each Config that it meets.

    Raises:
        ValueError: a size or choice that no model can have, or that nothing would read.

    >>> seed = Config(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512, n_vocab=65)
    >>> llama = dataclasses.replace(seed, position="rotary", norm="rms", activation="silu",
    ...                             gated=True, n_kv_heads=2)
    >>> Config.from_json(llama.to_json()) == llama
    True
    """

    n_layers: int
    """residual blocks; 0 leaves the embedding and the unembedding: a bigram model"""
    d_model: int
    """width of the residual stream"""
    n_heads: int
    """query heads of each attention layer"""
    d_head: int
    """width of one head's subspace; need not be d_model / n_heads"""
    d_mlp: int
    """neurons of each MLP layer; 0 leaves the MLPs out: the attention-only model"""
    n_vocab: int
    """entries of the vocabulary"""

    n_kv_heads: int | None = None
    """key/value heads, each shared by n_heads / n_kv_heads query heads; None: one per query head"""
    position: Position = "none"
    """how a token learns where it is: added to the embedding, or (rotary) by turning queries and keys"""
    n_context: int | None = None
    """rows of the learned position table: the longest sequence it can hold"""
    rotary_base: float = 10_000.0
    """the longest rotary wavelength is about 2π times this many positions"""
    rotary_fraction: float = 1.0
    """part of each head's coordinates that rotary turns"""
    norm: NormKind = "none"
    """what each layer reads the stream through"""
    norm_epsilon: float = 1e-5
    """added to the variance (or mean square) under the norm's root"""
    activation: ActivationKind = "relu"
    """nonlinearity of the MLP neurons"""
    gated: bool = False
    """multiply each neuron's nonlinear reading by a second, linear one"""
    bias: Bias = "none"
    """biases on nothing; on queries, keys and values; or on everything but the unembedding"""
    parallel: bool = False
    """let the MLP read the stream before the block's attention has written to it"""
    tied: bool = False
    """unembed with the transposed embedding"""
    unembed_bias: bool = False
    """add a number of its own to each vocabulary entry's logit"""
    window: int | None = None
    """the latest positions that attention sees, a token's own included; None: all up to its own"""
    attention_scale: float | None = None
    """factor on query·key; None: 1/√d_head; 1.0: the plain dot product of the original text"""

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("d_model", "n_heads", "d_head", "n_vocab"):
            _at_least(self, name, 1)
        for name in ("n_layers", "d_mlp"):
            _at_least(self, name, 0)
        for name in ("n_kv_heads", "n_context", "window"):
            _at_least(self, name, 1)
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            divisors = [k for k in range(1, self.n_heads + 1) if self.n_heads % k == 0]
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; "
                f"choose n_kv_heads from {divisors}"
            )
        _check_position(self)
        _check_unread(self)
        if not 0 < self.norm_epsilon < math.inf:
            raise ValueError(f"norm_epsilon={self.norm_epsilon} must be positive; 1e-5 is usual")
        if self.attention_scale is not None and not 0 < self.attention_scale < math.inf:
            raise ValueError(
                f"attention_scale={self.attention_scale} must be a positive number; "
                "leave it None for 1/√d_head"
            )

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size of each axis of a parameter, by its letter in the dimension key.

        >>> Config(n_layers=2, d_model=8, n_heads=4, d_head=2, d_mlp=32, n_vocab=5).sizes["f"]
        32
        """
        return {
            "l": self.n_layers,
            "d": self.d_model,
            "n": self.n_heads,
            "k": self.n_kv_heads or self.n_heads,
            "h": self.d_head,
            "f": self.d_mlp,
            "v": self.n_vocab,
            "c": self.n_context or 0,
        }

    @property
    def rotary_width(self) -> int:
        """The number of each head's coordinates that rotary turns; 0 without rotary."""
        return round(self.d_head * self.rotary_fraction) if self.position == "rotary" else 0

    @property
    def score_scale(self) -> float:
        """The factor on query·key, with attention_scale=None resolved."""
        return self.d_head**-0.5 if self.attention_scale is None else self.attention_scale

    def to_json(self) -> str:
        """The Config as JSON text, every field written out."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The Config that `to_json` wrote.

        Raises:
            ValueError: text that is no JSON object, an unknown or a missing field, a wrong value.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a Config must be JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"a Config must be a JSON object, not {type(fields).__name__}")
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(
                f"unknown Config field {unknown[0]!r}; the fields are {', '.join(known)}"
            )
        required = {name for name, f in known.items() if f.default is dataclasses.MISSING}
        if missing := sorted(required - fields.keys()):
            raise ValueError(f"the Config lacks {', '.join(missing)}; a model has no default sizes")
        return cls(**fields)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How to run a model; never what it computes: every Compute agrees within its dtype's rounding.

    Raises:
        ValueError: an unknown choice, or float64 where JAX has it switched off.

    >>> Compute(dtype="bfloat16", remat="block").kernel
    'einsum'
    """

    dtype: DType | None = None
    """of the stream and the matrix products; None: the parameters' own. Norms, softmax and logits
    are never narrower than float32"""
    kernel: Kernel = "einsum"
    """attention written out; or in blocks of queries, without most of the masked half (less time and
    memory for a long sequence); or jax.nn.dot_product_attention. Only the first shows scores and pattern"""
    unroll: int = 1
    """residual blocks per turn of the layer loop: more compile time, sometimes less run time"""
    remat: Remat = "none"
    """what the backward pass recomputes: nothing, each block, or each block but its products with weights"""
    cache: CacheDType | None = None
    """how generation keeps keys and values; None: in dtype. int8 gives every head's vector a scale of its own"""

    def __post_init__(self) -> None:
        _check_types(self)
        _at_least(self, "unroll", 1)
        if (
            "float64" in (self.dtype, self.cache)
            and jax.dtypes.canonicalize_dtype(float) != np.float64
        ):
            raise ValueError(
                'dtype="float64" needs 64-bit JAX; '
                'call jax.config.update("jax_enable_x64", True) first'
            )


def _check_types(record: Any) -> None:
    """Hold each field to its annotation, which is a type, a Literal or a union of those with None."""
    for name, hint in typing.get_type_hints(type(record)).items():
        value = getattr(record, name)
        union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        options = typing.get_args(hint) if union else (hint,)
        if not any(_matches(value, option) for option in options):
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(_say, options))}")


def _matches(value: object, option: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return isinstance(value, str) and value in typing.get_args(option)
    if option is bool:
        return isinstance(value, bool)
    if option is float:  # Python's habit: an int will do for a float; a bool for neither
        option = (int, float)
    return isinstance(value, option) and not isinstance(value, bool)


def _say(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(option)))}"
    names = {int: "an integer", float: "a number", bool: "True or False", types.NoneType: "None"}
    return names[option]


def _at_least(record: Any, name: str, least: int) -> None:
    value = getattr(record, name)
    if value is not None and value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def _check_position(config: Config) -> None:
    if config.position == "learned" and config.n_context is None:
        raise ValueError('position="learned" needs n_context, the number of rows of its table')
    if config.position == "sinusoidal" and config.d_model % 2:
        raise ValueError(
            f'position="sinusoidal" fills the stream with pairs; choose an even d_model, not {config.d_model}'
        )
    if config.position == "rotary":
        if not 0 < config.rotary_fraction <= 1:
            raise ValueError(
                f"rotary_fraction={config.rotary_fraction} must be above 0 and at most 1"
            )
        if not 1 < config.rotary_base < math.inf:
            raise ValueError(f"rotary_base={config.rotary_base} must be above 1; 10000 is usual")
        if config.rotary_width < 2 or config.rotary_width % 2:
            raise ValueError(
                f"rotary turns pairs of coordinates; d_head={config.d_head} times "
                f"rotary_fraction={config.rotary_fraction} gives {config.rotary_width}, not an even number of 2 or more"
            )


def _check_unread(config: Config) -> None:
    """Refuse a choice that the rest of the Config leaves without a reader."""
    readers = {
        "n_context": (config.position == "learned", 'position="learned"'),
        "rotary_base": (config.position == "rotary", 'position="rotary"'),
        "rotary_fraction": (config.position == "rotary", 'position="rotary"'),
        "norm_epsilon": (config.norm != "none", 'norm="layer" or "rms"'),
        "gated": (config.d_mlp > 0, "d_mlp above 0"),
        "parallel": (config.d_mlp > 0, "d_mlp above 0"),
    }
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name, (read, needed) in readers.items():
        value = getattr(config, name)
        if not read and value != defaults[name]:
            raise ValueError(
                f"{name}={value!r} is read only with {needed}; leave it at {defaults[name]!r}"
            )
