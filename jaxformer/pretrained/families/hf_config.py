"""Reading a Hugging Face config. Every field must be read, have a required value, or be known not to matter."""

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
"""Fields that no logit depends on: names, token ids, sampling and output options."""

REQUIRED_VALUES = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "quantization_config": None,
    "use_bidirectional_attention": None,
}
"""Fields of any family that must have this value (or False), or be absent."""

ACTIVATIONS: dict[str, ActivationKind] = {
    "relu": "relu", "gelu": "gelu", "gelu_python": "gelu",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu", "swish": "silu", "relu2": "relu_squared",
}  # fmt: skip
"""transformers' names of activations, and jaxformer's."""


class Fields:
    """The fields of one config file. It remembers which were read; `finish` refuses the rest."""

    def __init__(
        self, values: Mapping[str, Any], where: str, shown: Mapping[str, str] | None = None
    ):
        """Begin with all fields unread.

        Args:
            values: the fields.
            where: the file, and the field that these are nested in; for error messages.
            shown: the names of some fields in the file, where they differ; for error messages.
        """
        self.values, self.where, self.shown = dict(values), where, shown or {}
        self.left = set(self.values) - HARMLESS

    def say(self, name: str) -> str:
        """Format a field and its value for an error message."""
        return f"{self.where} has {self.shown.get(name, name)}={self.values[name]!r}"

    def take(self, name: str, kind: str, default: Any = REQUIRED) -> Any:
        """Return a field's value, or the default if the field is absent.

        Null is accepted only where None is the default.

        Args:
            name: of the field.
            kind: "int", "number", "bool", "text", "list" or "table".
            default: left out, the field is required.

        Raises:
            ValueError: a required field is absent, or a value has another kind.
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
        """Return the value of a field that may be null (None), or the default if the field is absent."""
        return self.take(name, kind, None if name in self.values else default)

    def size(self, name: str, default: Any = REQUIRED) -> Any:
        """Return the value of a field that must be at least 1.

        Raises:
            ValueError: as in `take`, or a value below 1.
        """
        value = self.take(name, "int", default)
        if value is not None and value < 1:
            raise ValueError(f"{self.say(name)}; it must be at least 1")
        return value

    def heads(self, width: str, usual_width: int, heads: str, usual_heads: int) -> tuple[int, int]:
        """Return d_model and n_heads, given their names and defaults, of a model with d_head = d_model / n_heads.

        Raises:
            ValueError: as in `size`, or a width that is not a multiple of the number of heads.
        """
        d, n = self.size(width, usual_width), self.size(heads, usual_heads)
        if d % n:
            raise ValueError(
                f"{self.where} has {width}={d}, which is not a multiple of {heads}={n}"
            )
        return d, n

    def layers(self, name: str, default: int) -> int:
        """Return the number of layers, within a limit: a damaged file could otherwise exhaust the memory.

        Raises:
            ValueError: more layers than any model has.
        """
        number = self.take(name, "int", default)
        if number > 10_000:
            raise ValueError(f"{self.say(name)}; it must be at most 10000")
        return number

    def demand(self, name: str, value: Any, *others: Any) -> None:
        """Require that a field is absent or has this value (or one of the others).

        Raises:
            ValueError: another value.
        """
        self.left.discard(name)
        if name in self.values and not any(_same(self.values[name], v) for v in (value, *others)):
            raise ValueError(
                f"{self.say(name)}, which jaxformer cannot compute; it supports only {value!r}"
            )

    def ignore(self, *names: str) -> None:
        """Accept any value of fields that change no logit of this family."""
        self.left -= set(names)

    def nested(self, name: str) -> "Fields":
        """Return the fields of a nested table; empty if it is absent."""
        return Fields(self.take(name, "table", None) or {}, f"{self.where}, {name}")

    def activation(self, name: str, default: str) -> ActivationKind:
        """Return the activation that a field names.

        Raises:
            ValueError: an activation that jaxformer does not have.
        """
        value = self.take(name, "text", default)
        if value not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"{self.say(name)}; jaxformer supports {known}")
        return ACTIVATIONS[value]

    def finish(self) -> None:
        """Refuse fields that were not read.

        Raises:
            ValueError: a field that might change what is computed.
        """
        for name, value in REQUIRED_VALUES.items():
            if name in self.left:
                self.demand(name, value, False)
        if self.left:
            name = min(self.left)
            raise ValueError(
                f"{self.say(name)}; jaxformer does not know this field, which may change the logits"
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
    """Return transformers' name of an activation; gelu_tanh has several, which depend on the family."""
    names = {own: name for name, own in reversed(ACTIVATIONS.items())}
    return names[activation] if activation != "gelu_tanh" else gelu_tanh
