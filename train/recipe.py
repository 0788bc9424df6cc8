"""A `Recipe`: everything that decides a run's numbers, as frozen data that validates itself."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from jaxformer.config import Compute, Config
from jaxformer.model.remat import check_saved
from jaxformer.text.tokenizer import Tokenizer

Watch = Literal["induction", "previous-token", "pattern-entropy", "update-norm"]


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
class Optimizer:
    """The rule of the updates, its settings, its schedule's and the clipping's."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for everything; or muon for matrices between hidden states and Adam for the rest"""
    learning_rate: float = 3e-3
    """at its highest, after the warm-up; muon's is of another scale than Adam's: 0.02 is usual"""
    adam_learning_rate: float | None = None
    """of what muon leaves to Adam; None: learning_rate"""
    schedule: Literal["cosine", "stable"] = "cosine"
    """from the highest rate down: half a cosine over the whole run; or level, then a line"""
    warmup: int = 100
    """steps of linear growth from 0; at most half of the run"""
    decay: float = 0.2
    """part of the steps after the warm-up that the line of schedule=stable takes"""
    last_share: float = 0.1
    """part of the learning rate that the schedule ends on"""
    momentum: float = 0.95
    """decay of the running mean that muon makes orthogonal"""
    beta1: float = 0.9
    """decay of Adam's running mean of gradients"""
    beta2: float = 0.99
    """decay of Adam's running mean of their squares"""
    weight_decay: float = 0.1
    """of the matrices, per unit of learning rate; under muon, of muon's matrices"""
    clip: float = 1.0
    """largest global norm of a gradient"""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip"):
            _bounded(self, name, above=0.0)
        for name in ("warmup", "weight_decay"):
            _bounded(self, name, least=0.0)
        for name in ("decay", "last_share"):
            _bounded(self, name, least=0.0, most=1.0)
        for name in ("momentum", "beta1", "beta2"):
            _bounded(self, name, least=0.0, below=1.0)
        if self.adam_learning_rate is not None:
            _bounded(self, "adam_learning_rate", above=0.0)
        self._check_unread()

    def _check_unread(self) -> None:
        readers = {
            "adam_learning_rate": ("name", "muon"),
            "momentum": ("name", "muon"),
            "decay": ("schedule", "stable"),
        }
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name, (choice, reader) in readers.items():
            value = getattr(self, name)
            if getattr(self, choice) != reader and value != defaults[name]:
                raise ValueError(
                    f"{name}={value} is read only with {choice}={reader}; leave it at {defaults[name]}"
                )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's numbers: two runs of one Recipe on one machine are bit-identical."""

    config: Architecture
    """the model"""
    corpus: str = "python-docs"
    """python-docs, shakespeare; grammar, induction, modular-addition, brackets; a file that train.prepare
    wrote; or the path of a text file, a folder or a glob"""
    start: str | None = None
    """a model to go on from: a folder of ours or of Hugging Face, a GGUF file, a hub id; its architecture and
    tokenizer are then the run's. It usually wants a lower rate than a fresh one: --optimizer.learning-rate 1e-4"""
    tokenizer: Literal["characters", "bytes"] = "characters"
    """how a text becomes tokens; prepared files, the toy tasks and a model to start from bring their own"""
    context: int = 32
    """tokens that the model sees at once"""
    batch: int = 24
    """sequences per step"""
    order: Literal["random", "shuffled"] = "random"
    """of a text's windows: they begin anywhere; or each epoch takes them side by side, in a new order"""
    accumulate: int = 1
    """parts that a batch is cut into; their gradients are summed: less memory, the same step"""
    steps: int = 800
    """updates of the parameters"""
    optimizer: Optimizer = Optimizer()
    """how they are updated"""
    compute: Compute = Compute()  # noqa: RUF009  frozen
    """how the model is run; changes speed and rounding only"""
    vocab_chunk: int | None = None
    """entries of the vocabulary whose logits exist at once; None: all; less memory, the same loss"""
    chunk: int = 50
    """steps per compiled call; progress, Ctrl-C and metrics come between the calls"""
    validate_every: int = 200
    """steps between validations; each is also a checkpoint; a multiple of chunk"""
    watch: tuple[Watch, ...] = ()
    """what else each validation looks at: scores of every head, sizes of every layer's updates"""
    seed: int = 0
    """of the first parameters (but not of a model to start from), the batches and the samples"""
    seeds: int = 1
    """models to train side by side in one program, from seed on"""

    def __post_init__(self) -> None:
        _bounded(self, "seed", least=0.0)
        if self.seed + self.seeds > 2**30:  # above lie the seeds of what is fixed
            raise ValueError(
                f"seed={self.seed} and seeds={self.seeds} go past 2**30; choose smaller ones"
            )
        for name in ("context", "batch", "accumulate", "steps", "chunk", "validate_every", "seeds"):
            _bounded(self, name, least=1.0)
        if self.vocab_chunk is not None:
            _bounded(self, "vocab_chunk", least=1.0)
        if self.validate_every % self.chunk:
            raise ValueError(
                f"validate_every={self.validate_every} is not a multiple of chunk={self.chunk}; "
                "validations come between compiled calls"
            )
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch={self.batch} is not a multiple of accumulate={self.accumulate}; "
                "all parts of a batch are of one size"
            )
        patterns = [name for name in self.watch if name != "update-norm"]
        if patterns and self.compute.kernel != "einsum":
            raise ValueError(
                f'kernel="{self.compute.kernel}" never forms the patterns that --watch {patterns[0]} looks at; '
                'leave out one of them, or use kernel="einsum"'
            )
        if "induction" in self.watch and self.context < 4:
            raise ValueError(
                f"context={self.context} is too short for --watch induction, which looks at a repeat of at "
                "least two tokens; choose one of at least 4"
            )
        if "previous-token" in self.watch and self.context < 2:
            raise ValueError(
                "context=1 is too short for --watch previous-token, which looks from a token to the one "
                "before it; choose one of at least 2"
            )
        if self.start is None:  # else it is not yet known what the config will be
            self.check_context()
            check_saved(self.config, self.compute)

    def check_context(self) -> None:
        """Refuse a context that the model has no positions for.

        Raises:
            ValueError: it is longer than the position table.
        """
        rows = self.config.n_context
        if rows is not None and self.context > rows:
            raise ValueError(
                f"context={self.context} is longer than the position table, config.n_context={rows}; "
                + (
                    "make the table longer or the context shorter"
                    if self.start is None
                    else "choose a shorter one"
                )
            )
