"""Reading a Hugging Face config. Every field must be read, have a required value, or be known not to matter."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxformer.config import ActivationKind
from jaxformer.pretrained.families.ignored import as_tuple, field_names
from jaxformer.pretrained.families.known_fields import HARMLESS, REQUIRED_VALUES

REQUIRED: Any = object()

ACTIVATIONS: dict[str, ActivationKind] = {
    "relu": "relu", "gelu": "gelu", "gelu_python": "gelu",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu", "swish": "silu", "relu2": "relu_squared",
}  # fmt: skip
"""transformers' names of activations, and jaxformer's."""


class Fields:
    """The fields of one config file. It remembers which were read; `finish` refuses the rest."""

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        shown: Mapping[str, str] | None = None,
        ignored: frozenset[str] | None = None,
        table: str = "",
    ):
        """Begin with all fields unread.

        Args:
            values: the fields.
            where: the file, and the field that these are nested in; for error messages.
            shown: the names of some fields in the file, where they differ.
            ignored: names of fields to leave out; None: errors do not offer to leave any out.
            table: the field that these are nested in, with a dot after it.
        """
        self.given, self.where, self.shown = dict(values), where, shown or {}
        self.ignored, self.table = ignored, table
        self.values = {k: v for k, v in self.given.items() if not self.is_ignored(k)}
        self.left = set(self.values) - HARMLESS

    def full_name(self, name: str) -> str:
        """Return the name by which `ignore` has this field."""
        return self.table + self.shown.get(name, name)

    def is_ignored(self, name: str) -> bool:
        """Return whether `ignore` names this field."""
        return self.full_name(name) in (self.ignored or ())

    def check_ignored(self) -> None:
        """Refuse names in `ignore` that the file does not have.

        Raises:
            ValueError: naming the first such name.
        """
        found = {self.full_name(name) for name in field_names(self.given)}
        if absent := (self.ignored or frozenset()) - found:
            raise ValueError(
                f"ignore names {min(absent)!r}, a field that {self.where} does not have"
            )

    def hint(self, *names: str) -> str:
        """Return the end of an error about fields that are refused: how to read the model without them."""
        if self.ignored is None:
            return ""
        listed = sorted({self.full_name(name) for name in names} | self.ignored)
        them = "them" if len(listed) > 1 else "it"
        return (
            f"; load(..., ignore={as_tuple(listed)}) reads the model without {them}, "
            "whose logits may then differ"
        )

    def say(self, name: str) -> str:
        """Format a field and its value for an error message."""
        return f"{self.where} has {self.shown.get(name, name)}={self.given[name]!r}"

    def take(self, name: str, kind: str, default: Any = REQUIRED) -> Any:
        """Return a field's value, or the default if the field is absent.

        Null is accepted only where None is the default.

        Args:
            name: of the field.
            kind: "int", "number", "bool", "text", "list" or "table".
            default: left out, the field is required.

        Raises:
            ValueError: a required field is absent, a value has another kind, or `ignore` names the field.
        """
        self.left.discard(name)
        if self.is_ignored(name):
            raise ValueError(
                f"ignore names {self.full_name(name)!r}, which jaxformer needs to read {self.where}; "
                "leave it out of ignore"
            )
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
                + self.hint(name)
            )

    def ignore(self, *names: str) -> None:
        """Accept any value of fields that change no logit of this family."""
        self.left -= set(names)

    def nested(self, name: str) -> "Fields":
        """Return the fields of a nested table; empty if it is absent."""
        values, table = self.take(name, "table", None) or {}, f"{self.full_name(name)}."
        return Fields(values, f"{self.where}, {name}", None, self.ignored, table)

    def kind(self, name: str, kinds: Sequence[str], default: str) -> str | None:
        """Return which of these kinds a field names; None: another one, and `ignore` names the field.

        Raises:
            ValueError: another kind.
        """
        if self.is_ignored(name) and self.given.get(name, default) not in kinds:
            return None
        value = self.take(name, "text", default)
        if value not in kinds:
            known = ", ".join(map(repr, kinds))
            raise ValueError(f"{self.say(name)}; jaxformer supports {known}{self.hint(name)}")
        return value

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
                + self.hint(*self.left)
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
