"""What a model is (`Config`) and how to run it (`Compute`): plain, frozen, hashable data."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np

from jaxformer.config_checks import (
    Record,
    at_least,
    check_position,
    check_rotary,
    check_saved,
    current_names,
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
"""The sites that a backward pass may read. It always has resid_pre, the input of the block; it never needs the values
of mlp_out and resid_post; and of head_out, which is not computed by default, it reads only the sum."""
CacheDType = Literal["int8", "float16", "bfloat16", "float32", "float64"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Rotary(Record):
    """The settings of rotary positions; read where Config has position="rotary".

    Source: Su et al. 2021, "RoFormer"; llama3: Grattafiori et al. 2024, "The Llama 3 Herd of Models", §3.2.

    >>> Rotary(base=500_000.0, scaling="linear", factor=8.0)
    Rotary(base=500000.0, scaling='linear', factor=8.0)
    """

    prefix = "rotary."

    base: float = 10_000.0
    """the longest wavelength is about 2π times this many positions"""
    fraction: float = 1.0
    """the fraction of each head's coordinates that is rotated"""
    scaling: RotaryScaling = "none"
    """how frequencies are lowered for texts longer than those of training. linear: all of them, by factor; llama3: only
    the low ones"""
    factor: float = 1.0
    """what lowered frequencies are divided by"""
    original_context: int | None = None
    """llama3: length of the training texts, in tokens"""
    low_turns: float = 1.0
    """llama3: a pair of coordinates that rotates this often in original_context, or less, is divided by factor"""
    high_turns: float = 4.0
    """llama3: a pair that rotates this often, or more, is unchanged"""
    local_base: float | None = None
    """base of the layers with a window, whose frequencies are not scaled; None: as in the other layers"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rotary(self)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Config(Record):
    """The architecture of a model: six sizes, then one named choice for each thing that later GPTs added.

    Every choice defaults to the seed model's: no positions, no norms, no biases. A Config is static under `jit`: a
    function compiles once for each Config. A value that the other choices leave unread (a window_pattern without a
    window) is allowed and changes nothing, so that `dataclasses.replace` works on any Config.

    Raises:
        ValueError: a size or choice that no model can have.

    >>> seed = Config(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512, n_vocab=65)
    >>> llama = dataclasses.replace(seed, position="rotary", norm="rms", activation="silu",
    ...                             gated=True, n_kv_heads=2)
    >>> Config.from_json(llama.to_json()) == llama
    True
    """

    n_layers: int
    """number of residual blocks; 0: only embedding and unembedding, a bigram model"""
    d_model: int
    """width of the residual stream"""
    n_heads: int
    """query heads of each attention layer"""
    d_head: int
    """width of one head's subspace; need not be d_model / n_heads"""
    d_mlp: int
    """neurons of each MLP layer; 0: no MLP layers, the attention-only model"""
    n_vocab: int
    """entries of the vocabulary"""

    n_kv_heads: int | None = None
    """key/value heads, each shared by n_heads / n_kv_heads query heads; None: one per query head"""
    position: Position = "none"
    """positional encoding. sinusoidal, learned: added to the embedding; rotary: rotates queries and keys"""
    n_context: int | None = None
    """position=learned: rows of the position table, the longest sequence that the model takes"""
    rotary: Rotary = Rotary()
    """position=rotary: its settings"""
    norm: NormKind = "none"
    """the norm through which each layer reads the stream. layer: LayerNorm; rms: RMSNorm"""
    norm_place: NormPlace = "before"
    """where a layer has its norm. before: on what it reads; after: on what it writes; both"""
    norm_epsilon: float = 1e-5
    """added to the variance (or mean square) under the norm's root"""
    norm_plus_one: bool = False
    """norms multiply by 1 + w instead of w"""
    qk_norm: QKNorm = "none"
    """an RMSNorm on queries and keys, before rotary. head: of each head's vector; all: of all heads' together"""
    activation: ActivationKind = "relu"
    """nonlinearity of the MLP neurons"""
    gated: bool = False
    """multiply each neuron's activation by a second, linear query of the state"""
    bias: Bias = "none"
    """which layers have biases: qkv is queries, keys and values; attention adds the heads' sum; all adds norms
    (never RMSNorms) and MLPs. The unembedding's bias is a choice of its own"""
    parallel: bool = False
    """attention and MLP of a block both read the stream as it came into the block"""
    tied: bool = False
    """unembed with the transposed embedding"""
    embedding_scale: float = 1.0
    """factor on the embedding as it enters the stream; a tied unembedding is not scaled"""
    unembed_bias: bool = False
    """add a bias to each vocabulary entry's logit"""
    window: int | None = None
    """attend only to this many latest positions, the query's own included; None: to all up to its own"""
    window_pattern: str = "L"
    """which layers have the window: one letter per layer, L (local) with it and G (global) without, repeated"""
    attention_scale: float | None = None
    """factor on query·key; None: 1/√d_head; 1.0: the plain dot product of the original text"""
    scale_scores_by_layer: bool = False
    """divide the scores of layer i, counted from 0, by i + 1"""
    attention_soft_cap: float | None = None
    """soft cap of the scores, cap·tanh(score/cap), before the causal mask; None: no cap"""
    logit_soft_cap: float | None = None
    """soft cap of the logits; None: no cap"""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        positive(self, "norm_epsilon", "1e-5 is usual")
        positive(self, "embedding_scale", "1.0 leaves the embedding unchanged")
        positive(self, "attention_scale", "leave it None for 1/√d_head")
        for name in ("attention_soft_cap", "logit_soft_cap"):
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
            "c": self.max_length or 0,
        }

    @property
    def max_length(self) -> int | None:
        """The longest sequence that the position table holds; None: there is no table, and no limit."""
        return self.n_context if self.position == "learned" else None

    @property
    def rotary_width(self) -> int:
        """The number of each head's coordinates that rotary positions rotate; 0 without them."""
        return round(self.d_head * self.rotary.fraction) if self.position == "rotary" else 0

    @cached_property
    def local_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it has the window.

        >>> Config(n_layers=3, d_model=8, n_heads=4, d_head=2, d_mlp=32, n_vocab=5, window=3,
        ...        window_pattern="LG").local_layers
        (True, False, True)
        """
        pattern, has = self.window_pattern, self.window is not None
        return tuple(has and pattern[i % len(pattern)] == "L" for i in range(self.n_layers))

    @cached_property
    def max_lookback(self) -> int | None:
        """The number of latest positions that any layer attends to; None: there is no limit."""
        return self.window if all(self.local_layers) else None

    @cached_property
    def score_scale(self) -> float:
        """The factor on query·key, with attention_scale=None resolved."""
        return self.d_head**-0.5 if self.attention_scale is None else self.attention_scale

    def has_bias(self, part: str) -> bool:
        """Whether a part has biases: "qkv", "o" (the heads' sum), "mlp" or "norm"."""
        return part in BIASES[self.bias]

    def has_norm(self, place: str) -> bool:
        """Whether layers have a norm "before" them, or "after"."""
        return self.norm != "none" and self.norm_place in (place, "both")

    def to_json(self) -> str:
        """The Config as JSON text, every field written out."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Read what `to_json` wrote, in this version or an earlier one.

        Raises:
            ValueError: text that is not a JSON object, an unknown or a missing field, a wrong value.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a Config must be JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"a Config must be a JSON object, not {type(fields).__name__}")
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Config":
        """Make a Config of what `dataclasses.asdict` returned, in this version or an earlier one.

        Fields of rotary may also be given as "rotary.base" and so on.

        Raises:
            ValueError: an unknown or a missing field, a wrong value.
        """
        own: Any = current_names(fields)
        known = {f.name: f for f in dataclasses.fields(cls)}
        rotary = {f.name for f in dataclasses.fields(Rotary)}
        unknown = {f"rotary.{name}" for name in own["rotary"].keys() - rotary}
        if unknown := sorted(unknown | (own.keys() - known)):
            raise ValueError(
                f"unknown Config field {unknown[0]!r}; the fields are {', '.join(known)}"
            )
        required = {name for name, f in known.items() if f.default is dataclasses.MISSING}
        if missing := sorted(required - own.keys()):
            raise ValueError(f"the Config lacks {', '.join(missing)}; a model has no default sizes")
        return cls(**own | {"rotary": Rotary(**own["rotary"])})


BIASES: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "qkv": frozenset({"qkv"}),
    "attention": frozenset({"qkv", "o"}),
    "all_but_qkv": frozenset({"o", "mlp", "norm"}),
    "all_but_attention": frozenset({"mlp", "norm"}),
    "all": frozenset({"qkv", "o", "mlp", "norm"}),
}
"""The parts that have biases, by Config.bias."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Compute(Record):
    """How to run a model; never what it computes: any two agree within the rounding of their dtypes.

    Raises:
        ValueError: an unknown choice, or float64 while JAX has it switched off.

    >>> Compute(dtype="bfloat16", remat="block")
    Compute(dtype='bfloat16', remat='block')
    """

    dtype: DType | None = None
    """dtype of the stream and of matrix products; None: the parameters' dtype. Norms, softmax and logits are in float32
    or wider"""
    kernel: Kernel = "einsum"
    """how attention is computed. einsum: written out, the only one that has the sites scores and pattern; blocked: in
    blocks of queries, with less time and memory for long sequences; fused: by jax.nn.dot_product_attention"""
    unroll: int = 1
    """residual blocks per iteration of the loop over layers: compiles longer, sometimes runs faster"""
    remat: Remat = "none"
    """what the backward pass recomputes, to use less memory and more time. none: nothing; block: each block; dots: each
    block but its products with weights; sites: each block but the sites named in saved"""
    saved: tuple[Saved, ...] = ()
    """remat=sites: the sites whose values the backward pass keeps; more of them use more memory and less time"""
    cache: CacheDType | None = None
    """dtype of the key/value cache in generation; None: as dtype. int8 stores one scale per head and position"""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "unroll", 1)
        check_saved(self)
        wide = "float64" in (self.dtype, self.cache)
        if wide and jax.dtypes.canonicalize_dtype(float) != np.float64:
            raise ValueError(
                'dtype="float64" needs 64-bit JAX; '
                'call jax.config.update("jax_enable_x64", True) first'
            )
