"""What to train: each preset is one frozen `Recipe`, and its docstring-like comment says what it reached."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from jaxformer.config import Compute, Config
from jaxformer.tokenizer import Tokenizer


def _bounded(
    record: object,
    name: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    value = getattr(record, name)
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number")
    if below is not None and not value < below:
        raise ValueError(f"{name}={value} must be below {below}")
    if least is not None and not value >= least:
        raise ValueError(f"{name}={value} must be at least {least}")
    if above is not None and not value > above:
        raise ValueError(f"{name}={value} must be above {above}")
    if most is not None and not value <= most:
        raise ValueError(f"{name}={value} must be at most {most}")


@dataclass(frozen=True, kw_only=True)
class Architecture(Config):
    """The model; its vocabulary is the corpus's."""

    n_vocab: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 1
    """filled in by the tokenizer"""

    def for_tokenizer(self, tokenizer: Tokenizer) -> Config:
        """The Config, with the tokenizer's vocabulary."""
        fields: dict[str, Any] = dataclasses.asdict(self) | {"n_vocab": tokenizer.n_vocab}
        return Config(**fields)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW's settings, its schedule's and the clipping's."""

    learning_rate: float = 3e-3
    """at its highest, after the warm-up"""
    warmup: int = 100
    """steps of linear growth from 0; at most half of the run"""
    last_share: float = 0.1
    """part of the learning rate that the cosine ends on"""
    beta1: float = 0.9
    """decay of the gradients' running mean"""
    beta2: float = 0.99
    """decay of their running mean square"""
    weight_decay: float = 0.1
    """of the matrices, per unit of learning rate"""
    clip: float = 1.0
    """largest global norm of a gradient"""

    def __post_init__(self) -> None:
        _bounded(self, "learning_rate", above=0.0)
        _bounded(self, "clip", above=0.0)
        _bounded(self, "warmup", least=0.0)
        _bounded(self, "weight_decay", least=0.0)
        _bounded(self, "last_share", least=0.0, most=1.0)
        for name in ("beta1", "beta2"):
            _bounded(self, name, least=0.0, below=1.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's numbers: two runs of one Recipe on one machine are bit-identical."""

    config: Architecture
    """the model"""
    corpus: str = "python-docs"
    """python-docs, shakespeare, or the path of a text file, a folder or a glob"""
    tokenizer: Literal["characters", "bytes"] = "characters"
    """how text becomes tokens"""
    context: int = 32
    """tokens that the model sees at once"""
    batch: int = 24
    """sequences per step"""
    steps: int = 800
    """updates of the parameters"""
    optimizer: AdamW = AdamW()
    """how they are updated"""
    compute: Compute = Compute()  # noqa: RUF009  frozen
    """how the model is run; changes speed and rounding only"""
    chunk: int = 50
    """steps per compiled call; progress, Ctrl-C and metrics come between the calls"""
    validate_every: int = 200
    """steps between validations; each is also a checkpoint; a multiple of chunk"""
    seed: int = 0
    """of the first parameters, the batches and the samples"""

    def __post_init__(self) -> None:
        _bounded(self, "seed", least=0.0, below=2.0**31)
        for name in ("context", "batch", "steps", "chunk", "validate_every"):
            _bounded(self, name, least=1.0)
        if self.validate_every % self.chunk:
            raise ValueError(
                f"validate_every={self.validate_every} is not a multiple of chunk={self.chunk}; "
                "validations come between compiled calls"
            )
        rows = self.config.n_context
        if rows is not None and self.context > rows:
            raise ValueError(
                f"context={self.context} is longer than the position table, config.n_context={rows}; "
                "make the table longer or the context shorter"
            )


PRESETS = {
    "seed": Recipe(
        config=Architecture(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512),
        compute=Compute(unroll=4),
    ),
}
"""By name. `seed` is the seed model: no positions, no norms, no biases, about 0.8 M parameters."""
