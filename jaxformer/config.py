"""What a model is (`Config`) and how it is run (`Compute`): plain, frozen, hashable data."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np

from jaxformer.config_checks import (
    at_least,
    check_position,
    check_saved,
    check_types,
    check_unread,
    positive,
)

Position = Literal["none", "sinusoidal", "learned", "rotary"]
NormKind = Literal["none", "layer", "rms"]
ActivationKind = Literal["relu", "gelu", "gelu_tanh", "silu", "relu_squared"]
Bias = Literal["none", "qkv", "attention", "all_but_qkv", "all_but_attention", "all"]
RotaryScaling = Literal["none", "linear", "llama3"]
QKNorm = Literal["none", "head", "all"]
NormPlace = Literal["before", "after", "both"]
DType = Literal["float16", "bfloat16", "float32", "float64"]
Kernel = Literal["einsum", "blocked", "fused"]
Remat = Literal["none", "block", "dots", "sites"]
Saved = Literal[
    "attn_scale", "q", "k", "v", "rot_q", "rot_k", "scores", "pattern", "z", "attn_post_scale", "attn_out",
    "resid_mid", "mlp_scale", "pre", "pre_linear", "post", "mlp_post_scale",
]  # fmt: skip
"""The sites that a backward pass may read. It has resid_pre in any case, as the block's input; mlp_out and
resid_post only pass derivatives on; and of head_out, which is not even formed, it reads the sum alone."""
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
    rotary_scaling: RotaryScaling = "none"
    """how rotary is slowed for texts longer than those of training: all turns alike; or, in Llama 3, slow ones only"""
    rotary_factor: float = 1.0
    """how many times slower the slowed turns are"""
    rotary_context: int | None = None
    """llama3: positions of the training texts; what turns low_freq_factor times in them or less is slowed whole"""
    rotary_low: float = 1.0
    """llama3: turns in rotary_context up to which a turn is slowed by the whole factor"""
    rotary_high: float = 4.0
    """llama3: turns in rotary_context from which a turn is left alone"""
    local_rotary_base: float | None = None
    """rotary_base of the layers that have a window, which then scale nothing; None: as the others"""
    norm: NormKind = "none"
    """what each layer reads the stream through"""
    norm_place: NormPlace = "before"
    """where a layer's norm is: before it, on what it reads; after it, on what it writes; or both"""
    norm_epsilon: float = 1e-5
    """added to the variance (or mean square) under the norm's root"""
    norm_plus_one: bool = False
    """norms multiply by 1 + w, so that weights of 0 change nothing"""
    qk_norm: QKNorm = "none"
    """an RMS norm on queries and keys, before rotary: of each head's vector, or of all heads' together"""
    activation: ActivationKind = "relu"
    """nonlinearity of the MLP neurons"""
    gated: bool = False
    """multiply each neuron's nonlinear reading by a second, linear one"""
    bias: Bias = "none"
    """which layers have biases: qkv is queries, keys and values, attention these and the heads' sum; norms
    (RMS norms never have any) and the MLP count with all. The unembedding has its own choice"""
    parallel: bool = False
    """let the MLP read the stream before the block's attention has written to it"""
    tied: bool = False
    """unembed with the transposed embedding"""
    embedding_scale: float = 1.0
    """factor on the embedding's rows as they enter the stream; a tied unembedding goes without"""
    unembed_bias: bool = False
    """add a number of its own to each vocabulary entry's logit"""
    window: int | None = None
    """the latest positions that attention sees, a token's own included; None: all up to its own"""
    window_pattern: str = "L"
    """which layers have the window: a letter for each, L (local) with it and G (global) without, from the first
    layer on and over again"""
    attention_scale: float | None = None
    """factor on query·key; None: 1/√d_head; 1.0: the plain dot product of the original text"""
    scale_by_depth: bool = False
    """divide the scores of layer i, counted from 0, by i + 1"""
    attention_cap: float | None = None
    """a score x becomes cap·tanh(x/cap), before what comes later is hidden; None: no cap"""
    logit_cap: float | None = None
    """the same for logits"""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("d_model", "n_heads", "d_head", "n_vocab"):
            at_least(self, name, 1)
        for name in ("n_layers", "d_mlp"):
            at_least(self, name, 0)
        for name in ("n_kv_heads", "n_context", "window"):
            at_least(self, name, 1)
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            divisors = [k for k in range(1, self.n_heads + 1) if self.n_heads % k == 0]
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; "
                f"choose n_kv_heads from {divisors}"
            )
        check_position(self)
        check_unread(self)
        positive(self, "norm_epsilon", "1e-5 is usual")
        positive(self, "embedding_scale", "1.0 leaves the embedding as it is")
        positive(self, "attention_scale", "leave it None for 1/√d_head")
        for name in ("attention_cap", "logit_cap"):
            positive(self, name, "leave it None for no cap")
        if not self.window_pattern or set(self.window_pattern) - {"L", "G"}:
            raise ValueError(
                f"window_pattern={self.window_pattern!r} must be one or more of the letters L and G"
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
    def local_layers(self) -> tuple[bool, ...]:
        """Of each layer, whether it has the window.

        >>> Config(n_layers=3, d_model=8, n_heads=4, d_head=2, d_mlp=32, n_vocab=5, window=3,
        ...        window_pattern="LG").local_layers
        (True, False, True)
        """
        pattern, has = self.window_pattern, self.window is not None
        return tuple(has and pattern[i % len(pattern)] == "L" for i in range(self.n_layers))

    @property
    def horizon(self) -> int | None:
        """The latest positions that any layer sees: the window, if all have it; None: all up to its own."""
        return self.window if all(self.local_layers) else None

    def has_bias(self, part: str) -> bool:
        """Whether a part has biases: "qkv", "o" (the heads' sum), "mlp" or "norm"."""
        return part in BIASES[self.bias]

    def norms(self, place: str) -> bool:
        """Whether layers have a norm "before" them, or "after"."""
        return self.norm != "none" and self.norm_place in (place, "both")

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


BIASES: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "qkv": frozenset({"qkv"}),
    "attention": frozenset({"qkv", "o"}),
    "all_but_qkv": frozenset({"o", "mlp", "norm"}),
    "all_but_attention": frozenset({"mlp", "norm"}),
    "all": frozenset({"qkv", "o", "mlp", "norm"}),
}
"""The parts that each choice of `bias` gives biases to."""


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
    """what the backward pass recomputes, for less memory and more time: nothing; each block from the state that
    came into it; or each block but its products with weights, or but the sites named in saved, which it keeps"""
    saved: tuple[Saved, ...] = ()
    """remat=sites: those whose values the backward pass keeps, as far as it reads them; of what leads up to one
    alone it recomputes nothing. More names: more memory, less to recompute"""
    cache: CacheDType | None = None
    """how generation keeps keys and values; None: in dtype. int8 gives every head's vector a scale of its own"""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, "unroll", 1)
        check_saved(self)
        if (
            "float64" in (self.dtype, self.cache)
            and jax.dtypes.canonicalize_dtype(float) != np.float64
        ):
            raise ValueError(
                'dtype="float64" needs 64-bit JAX; '
                'call jax.config.update("jax_enable_x64", True) first'
            )
