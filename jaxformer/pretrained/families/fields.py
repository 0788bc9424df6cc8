"""A foreign config, of which every field must be accounted for: read, demanded, or known to change nothing."""

from collections.abc import Mapping
from typing import Any, Literal

from jaxformer.config import ActivationKind

REQUIRED: Any = object()

HARMLESS = frozenset({
    "_name_or_path", "architectures", "attn_implementation", "_attn_implementation_autoset",
    "dtype", "torch_dtype", "transformers_version", "model_type", "use_cache",
    "initializer_range", "problem_type", "id2label", "label2id", "finetuning_task",
    "task_specific_params", "return_dict", "output_attentions", "output_hidden_states",
    "output_past", "torchscript", "use_bfloat16", "chunk_size_feed_forward", "is_decoder",
    "gradient_checkpointing", "tokenizer_class", "bos_token_id", "eos_token_id", "pad_token_id",
    "sep_token_id", "decoder_start_token_id", "max_length", "min_length", "do_sample",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature",
    "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "prefix", "cache_implementation",
    "pretraining_tp", "unsloth_fixed", "unsloth_version", "is_llama_config",
    "transformers.js_config", "n_special", "predict_special_tokens", "_num_labels",
    "num_labels", "max_sequence_length", "_attn_implementation", "_commit_hash",
    "model_max_length", "tf_legacy_loss",
})  # fmt: skip
"""Names, tokens, how to draw and how to print: no logit depends on them."""

NEITHER = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "quantization_config": None,
    "use_bidirectional_attention": None,
}
"""Fields of any family that must be as here, or absent."""

ACTIVATIONS: dict[str, ActivationKind] = {
    "relu": "relu", "gelu": "gelu", "gelu_python": "gelu",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu", "swish": "silu", "relu2": "relu_squared",
}  # fmt: skip
"""Theirs to ours."""


class Fields:
    """The fields of one config file. `finish` refuses those that nobody has asked for."""

    def __init__(
        self, values: Mapping[str, Any], where: str, shown: Mapping[str, str] | None = None
    ):
        """Of a table of fields.

        Args:
            values: the fields.
            where: what errors name: the file, and the field that these are nested in.
            shown: the names that the file has for some of them.
        """
        self.values, self.where, self.shown = dict(values), where, shown or {}
        self.left = set(self.values) - HARMLESS

    def say(self, name: str) -> str:
        """A field and its value, for an error."""
        return f"{self.where} has {self.shown.get(name, name)}={self.values[name]!r}"

    def take(self, name: str, kind: str, default: Any = REQUIRED) -> Any:
        """A field's value: of a kind ("int", "number", "bool", "text", "list", "table"), or the default itself.

        Null stands for no value only where that is the default.

        Raises:
            ValueError: a field that has no default and is not there, or a value of another kind.
        """
        self.left.discard(name)
        if name not in self.values:
            if default is REQUIRED:
                raise ValueError(f"{self.where} lacks {self.shown.get(name, name)!r}")
            return default
        value = self.values[name]
        if value is None and default is None:
            return None
        if not _is(value, kind):
            raise ValueError(f"{self.say(name)}; it must be of the kind {kind}")
        return value

    def optional(self, name: str, kind: str, default: Any) -> Any:
        """A field that may be null, which says that there is none; the default is that of an absent one."""
        return self.take(name, kind, None if name in self.values else default)

    def size(self, name: str, default: Any = REQUIRED) -> Any:
        """A field that counts something of which there is at least one.

        Raises:
            ValueError: as `take`, and below 1.
        """
        value = self.take(name, "int", default)
        if value is not None and value < 1:
            raise ValueError(f"{self.say(name)}; it must be at least 1")
        return value

    def heads(self, width: str, usual_width: int, heads: str, usual_heads: int) -> tuple[int, int]:
        """The stream's width and the number of heads that share it, by their names and defaults.

        Raises:
            ValueError: as `size`, and heads that the width cannot be shared by.
        """
        d, n = self.size(width, usual_width), self.size(heads, usual_heads)
        if d % n:
            raise ValueError(
                f"{self.where} has {width}={d}, which is not a multiple of {heads}={n}"
            )
        return d, n

    def layers(self, name: str, default: int) -> int:
        """The number of layers, each of which will have its names listed.

        Raises:
            ValueError: more than any model has: a damaged file, which would take all memory.
        """
        number = self.take(name, "int", default)
        if number > 10_000:
            raise ValueError(f"{self.say(name)}; no model has more than 10000")
        return number

    def demand(self, name: str, value: Any, *others: Any) -> None:
        """A field that must have one value (or one of some), or be absent.

        Raises:
            ValueError: it has another.
        """
        self.left.discard(name)
        if name in self.values and not any(_same(self.values[name], v) for v in (value, *others)):
            raise ValueError(
                f"{self.say(name)}, which jaxformer cannot compute; only {value!r} will do"
            )

    def ignore(self, *names: str) -> None:
        """Fields that change no logit of this family."""
        self.left -= set(names)

    def nested(self, name: str) -> "Fields":
        """A field that is itself a table of fields; an absent one is empty."""
        return Fields(self.take(name, "table", None) or {}, f"{self.where}, {name}")

    def activation(self, name: str, default: str) -> ActivationKind:
        """The nonlinearity that a field names.

        Raises:
            ValueError: one that jaxformer does not have.
        """
        value = self.take(name, "text", default)
        if value not in ACTIVATIONS:
            raise ValueError(f"{self.say(name)}; known are {', '.join(map(repr, ACTIVATIONS))}")
        return ACTIVATIONS[value]

    def finish(self) -> None:
        """Refuse what is left.

        Raises:
            ValueError: a field that might change what is computed.
        """
        for name, value in NEITHER.items():
            if name in self.left:
                self.demand(name, value, False)
        if self.left:
            name = min(self.left)
            raise ValueError(
                f"{self.say(name)}; jaxformer does not know this field, "
                "and will not guess that it changes nothing"
            )


def _is(value: Any, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind == "number":
        return isinstance(value, (int, float)) and -1e300 < value < 1e300
    kinds = {"int": int, "text": str, "list": list, "table": dict}
    return isinstance(value, kinds[kind])


def _same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def name_of(activation: ActivationKind, gelu_tanh: Literal["gelu_new", "gelu_pytorch_tanh"]) -> str:
    """Their name of one of our nonlinearities; the one with tanh has several."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return names[activation] if activation != "gelu_tanh" else gelu_tanh
