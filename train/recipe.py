"""The `Recipe` of a run: every setting that its numbers depend on, frozen and validated."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
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
    """Refuse a value that is not finite or is outside its bounds."""
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


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True, repr=False)
class Architecture(Config):
    """The architecture of the model to train; the tokenizer sets its vocabulary size."""

    n_vocab: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 1
    """set by the tokenizer"""

    def for_tokenizer(self, tokenizer: Tokenizer) -> Config:
        """Return the Config with the vocabulary size of this tokenizer."""
        return Config.from_dict(dataclasses.asdict(self) | {"n_vocab": tokenizer.n_vocab})

    @classmethod
    def of(cls, config: Config) -> "Architecture":
        """Return the Architecture with the fields of a Config."""
        return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer, its learning-rate schedule and gradient clipping."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw: for all parameters; muon: for matrices between hidden states, with Adam for the rest"""
    learning_rate: float = 3e-3
    """peak learning rate, after warm-up; muon needs another scale than Adam, 0.02 is usual"""
    adam_learning_rate: float | None = None
    """name=muon: peak learning rate of the parameters that Adam updates; None: learning_rate"""
    schedule: Literal["cosine", "stable"] = "cosine"
    """learning rate after warm-up. cosine: half a cosine down to the end; stable: constant, then linear decay"""
    warmup: int = 100
    """steps of linear warm-up from 0; at most half of the run"""
    decay: float = 0.2
    """schedule=stable: fraction of the steps after warm-up that the linear decay takes"""
    final_lr_fraction: float = 0.1
    """final learning rate, as a fraction of the peak"""
    momentum: float = 0.95
    """name=muon: decay rate of the momentum that it orthogonalizes"""
    beta1: float = 0.9
    """decay rate of Adam's running mean of gradients"""
    beta2: float = 0.99
    """decay rate of Adam's running mean of squared gradients"""
    weight_decay: float = 0.1
    """weight decay of matrices, times the learning rate; name=muon: only of the matrices that muon updates"""
    clip: float = 1.0
    """clip gradients to this global norm"""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip"):
            _bounded(self, name, above=0.0)
        for name in ("warmup", "weight_decay"):
            _bounded(self, name, least=0.0)
        for name in ("decay", "final_lr_fraction"):
            _bounded(self, name, least=0.0, most=1.0)
        for name in ("momentum", "beta1", "beta2"):
            _bounded(self, name, least=0.0, below=1.0)
        if self.adam_learning_rate is not None:
            _bounded(self, "adam_learning_rate", above=0.0)

    @property
    def unread(self) -> dict[str, str]:
        """The settings that nothing reads, each with the setting that it needs, such as name=muon."""
        muon, stable = (
            (self.name == "muon", "name=muon"),
            (self.schedule == "stable", "schedule=stable"),
        )
        readers = {"adam_learning_rate": muon, "momentum": muon, "decay": stable}
        return {name: needed for name, (read, needed) in readers.items() if not read}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the numbers of a run: two runs on one machine are bit-identical."""

    config: Architecture
    """architecture of the model"""
    corpus: str = "python-docs"
    """what to train on: python-docs, shakespeare; a toy task: grammar, induction, modular-addition, brackets; or the
    path of a text file, a folder, a glob or a file that train.prepare wrote"""
    start: str | None = None
    """fine-tune this model: a folder of jaxformer or Hugging Face, a GGUF file or a hub id. It sets the architecture
    and the tokenizer, and usually needs a lower --optimizer.learning-rate, such as 1e-4"""
    tokenizer: Literal["characters", "bytes"] = "characters"
    """one token per character, or per byte of UTF-8; prepared files, toy tasks and --start bring their own"""
    context: int = 32
    """sequence length, in tokens"""
    batch: int = 24
    """batch size: sequences per optimizer step"""
    order: Literal["random", "shuffled"] = "random"
    """random: windows start anywhere, with replacement; shuffled: non-overlapping windows, reshuffled every epoch"""
    accumulate: int = 1
    """gradient accumulation: micro-batches per step (less memory, same step)"""
    steps: int = 800
    """optimizer steps"""
    optimizer: Optimizer = Optimizer()
    """optimizer and learning-rate schedule"""
    compute: Compute = Compute()
    """how to run the model; changes only speed, memory and rounding"""
    vocab_chunk: int | None = None
    """compute logits for this many vocabulary entries at a time (less memory, same loss); None: for all at once"""
    chunk: int = 50
    """steps per compiled call; metrics are written and Ctrl-C is handled between calls"""
    validate_every: int = 200
    """steps between validations, each with a checkpoint; a multiple of chunk"""
    watch: tuple[Watch, ...] = ()
    """measure at each validation: a score of every head, or (update-norm) the norm of every layer's updates"""
    seed: int = 0
    """random seed for the initial parameters (without --start), the batches and the samples"""
    seeds: int = 1
    """train this many models side by side in one program, with seeds from --seed upward"""

    def __post_init__(self) -> None:
        _bounded(self, "seed", least=0.0)
        if self.seed + self.seeds > 2**30:  # validation data has fixed seeds above
            raise ValueError(
                f"seed={self.seed} and seeds={self.seeds} go beyond 2**30; choose smaller ones"
            )
        for name in ("context", "batch", "accumulate", "steps", "chunk", "validate_every", "seeds"):
            _bounded(self, name, least=1.0)
        if self.vocab_chunk is not None:
            _bounded(self, "vocab_chunk", least=1.0)
        if self.validate_every % self.chunk:
            raise ValueError(
                f"validate_every={self.validate_every} is not a multiple of chunk={self.chunk}; "
                "choose a multiple, because validations happen between compiled calls"
            )
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch={self.batch} is not a multiple of accumulate={self.accumulate}; "
                "choose a multiple, because all micro-batches have the same size"
            )
        self._check_watch()
        if self.start is None:  # otherwise the model that is loaded sets the config
            self.check_context()
            check_saved(self.config, self.compute)

    def _check_watch(self) -> None:
        patterns = [name for name in self.watch if name != "update-norm"]
        if patterns and self.compute.kernel != "einsum":
            raise ValueError(
                f'kernel="{self.compute.kernel}" does not compute the patterns that --watch {patterns[0]} reads; '
                'use kernel="einsum", or leave --watch out'
            )
        if "induction" in self.watch and self.context < 4:
            raise ValueError(
                f"context={self.context} is too short for --watch induction, which repeats a sequence of at least "
                "two tokens; choose at least 4"
            )
        if "previous-token" in self.watch and self.context < 2:
            raise ValueError(
                "context=1 is too short for --watch previous-token, which compares a token with the one "
                "before it; choose at least 2"
            )

    def check_context(self) -> None:
        """Refuse a context that is longer than the model's position table.

        Raises:
            ValueError: context is larger than config.n_context.
        """
        rows = self.config.max_length
        if rows is not None and self.context > rows:
            raise ValueError(
                f"context={self.context} is longer than the position table, config.n_context={rows}; "
                + (
                    "lower context, or raise config.n_context"
                    if self.start is None
                    else "lower context"
                )
            )
