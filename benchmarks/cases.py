"""The cases of a benchmark: named sizes, or a Config from a file."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import Config
from jaxformer.pretrained.formats import is_gguf
from jaxformer.pretrained.json_io import read_object
from jaxformer.pretrained.loading import load_config, read_foreign
from train.runs import find_model


class Case(NamedTuple):
    """One model with one batch size and one sequence length."""

    name: str
    config: Config
    batch: int
    seq: int


def gpt_config(n_layers: int, n_heads: int, d_model: int, n_vocab: int, **choices: Any) -> Config:
    """Return a Config with n_heads · d_head = d_model and d_mlp = 4 · d_model."""
    return Config(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_head=d_model // n_heads,
        d_mlp=4 * d_model, n_vocab=n_vocab, **choices,
    )  # fmt: skip


GPT2: dict[str, Any] = {
    "position": "learned", "norm": "layer", "activation": "gelu_tanh", "bias": "all", "tied": True,
}  # fmt: skip

SIZES: dict[str, tuple[Config, int, int]] = {
    "seed": (gpt_config(4, 4, 128, 65), 12, 64),
    "baby": (gpt_config(4, 4, 128, 65, **GPT2, n_context=64), 12, 64),
    "char": (gpt_config(6, 6, 384, 65, **GPT2, n_context=256), 16, 256),
    "gpt2-124m": (gpt_config(12, 12, 768, 50_257, **GPT2, n_context=1024), 1, 512),
}
"""By name: Config, batch size, sequence length."""


def cases(
    sizes: Iterable[str],
    *,
    config: str | None = None,
    changes: Sequence[str] = (),
    batch: Sequence[int] = (),
    seq: Sequence[int] = (),
) -> Iterator[Case]:
    """Yield every size at every batch size and sequence length. A position table grows to the sequence length.

    Raises:
        ValueError: an unknown size, an invalid Config, or a batch size or sequence length below 1.
        OSError: the file of the Config cannot be read.
    """
    if low := [n for n in (*batch, *seq) if n < 1]:
        raise ValueError(f"a batch or sequence of {low[0]} cannot be timed; give at least 1")
    if unknown := [name for name in sizes if name not in SIZES]:
        raise ValueError(f"there is no size {unknown[0]!r}; choose from {', '.join(SIZES)}")
    table = {name: SIZES[name] for name in sizes}
    if config is not None:
        read = read_config(config)
        table = {name_of(config): (read, 1, min(read.max_length or 512, 512))}
    for name, (start, own_batch, own_seq) in table.items():
        changed = change(start, changes)
        for b in batch or (own_batch,):
            for t in seq or (own_seq,):
                yield Case(name, extended(changed, t), b, t)


def read_config(path: str) -> Config:
    """Read a Config from its JSON file, or from a model in a format of jaxformer, Hugging Face or GGUF.

    Raises:
        ValueError: another kind of file, or a model that jaxformer cannot compute.
        OSError: the file cannot be read.
    """
    place = Path(path)
    if place.suffix != ".json" and (not place.is_file() or is_gguf(place)):
        return load_config(find_model(path)[0])
    fields = read_object(place)
    if "model_type" in fields:
        return read_foreign(place)[1]
    own = fields.get("config") if "format" in fields else fields  # a model.json holds a Config
    try:
        return Config.from_json(json.dumps(own))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a Config of jaxformer, and without a model_type not one of Hugging Face: {error}"
        ) from error


def name_of(path: str) -> str:
    """Return the name that rows give to the model of a path.

    >>> [name_of(path) for path in ("a/mine.json", "llama/config.json", "runs/seed/model", "org/name-1.5b")]
    ['mine', 'llama', 'seed', 'name-1.5b']
    """
    place = Path(path)
    if place.suffix in (".json", ".gguf") and place.stem not in ("config", "model"):
        return place.stem
    if place.suffix == ".json":
        place = place.parent
    if place.name == "model" and place.parent.name:
        place = place.parent
    return place.name or place.resolve().name


def change(config: Config, changes: Sequence[str]) -> Config:
    """Return the Config with some fields changed, each by `name=value`.

    >>> change(SIZES["seed"][0], ["n_layers=2", "norm=rms"]).norm
    'rms'
    """
    fields = {field.name for field in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for text in changes:
        name, equals, value = text.partition("=")
        if not equals or name not in fields:
            raise ValueError(
                f"cannot set {text!r}; write FIELD=VALUE, with a field of {', '.join(fields)}"
            )
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return dataclasses.replace(config, **values)


def extended(config: Config, seq: int) -> Config:
    """Return the Config with a position table of at least this many rows."""
    if config.max_length is None or config.max_length >= seq:
        return config
    return dataclasses.replace(config, n_context=seq)
