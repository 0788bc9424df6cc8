"""Optimizers: optax's transformations, configured from the Specs of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from jaxformer.config import Config
from jaxformer.model.params import specs
from jaxformer.model.spec import Spec, is_spec
from train.recipe import Optimizer


def make_optimizer(config: Config, settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """Return the transformation for a run of this many steps: gradient clipping, then the named optimizer."""
    rule = RULES[settings.name](config, settings, steps)
    return optax.chain(optax.clip_by_global_norm(settings.clip), rule)


def adamw(config: Config, settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """AdamW: move each parameter by mean(gradient) / √mean(gradient²), with running means.

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; clipping and schedule: Brown et al.
    2020, app. B.
    """
    return optax.adamw(
        schedule(settings, settings.learning_rate, steps),
        b1=settings.beta1,
        b2=settings.beta2,
        weight_decay=settings.weight_decay,
        mask=decays(config),
    )


def muon(config: Config, settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """Muon: move each matrix between hidden states by its orthogonalized momentum, and all other parameters by Adam.

    In optax both use Nesterov momentum, so the Adam part is NAdam.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    dimensions = orthogonal(config)
    rest = settings.adam_learning_rate or settings.learning_rate
    return contrib.muon(
        schedule(settings, settings.learning_rate, steps),
        beta=settings.momentum,
        weight_decay=settings.weight_decay,
        adam_b1=settings.beta1,
        adam_b2=settings.beta2,
        adam_learning_rate=schedule(settings, rest, steps),
        # A function: optax would not match a tree that contains None with the parameters.
        muon_weight_dimension_numbers=lambda _: dimensions,
    )


RULES: dict[str, Callable[[Config, Optimizer, int], optax.GradientTransformation]] = {
    "adamw": adamw,
    "muon": muon,
}


def schedule(settings: Optimizer, peak: float, steps: int) -> optax.Schedule:
    """Return the learning-rate schedule: linear warm-up to the peak, then decay to final_lr_fraction · peak."""
    warmup = min(settings.warmup, steps // 2)
    decay = SHAPES[settings.schedule](settings, peak, steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), decay], [warmup])


def _cosine(settings: Optimizer, peak: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(steps, 1), alpha=settings.final_lr_fraction)


def _stable(settings: Optimizer, peak: float, steps: int) -> optax.Schedule:
    """Return a constant rate with a linear decay at the end. Source: Hu et al. 2024, "MiniCPM", §4."""
    decay = max(round(settings.decay * steps), 1)
    last = optax.linear_schedule(peak, peak * settings.final_lr_fraction, decay)
    return optax.join_schedules([optax.constant_schedule(peak), last], [steps - decay])


SHAPES: dict[str, Callable[[Optimizer, float, int], optax.Schedule]] = {
    "cosine": _cosine,
    "stable": _stable,
}


def decays(config: Config) -> Any:
    """Return which parameters have weight decay: the matrices, whose Specs have axes to sum over."""
    return _by_spec(config, lambda spec: bool(spec.reads))


def orthogonal(config: Config) -> Any:
    """Return the input and output axes of each matrix for Muon; None for parameters that Adam updates.

    Muon is for maps between hidden states. Adam updates embeddings, the unembedding, the position table, norms and
    biases. Each layer of a stack is a matrix of its own.
    """

    def dimensions(spec: Spec) -> contrib.MuonDimensionNumbers | None:
        if not spec.reads or "v" in spec.axes:
            return None
        writes = [a for a in spec.axes if a not in spec.reads and a != "l"]
        places = [tuple(map(spec.axes.index, letters)) for letters in (spec.reads, writes)]
        return contrib.MuonDimensionNumbers(*places)

    return _by_spec(config, dimensions)


def _by_spec(config: Config, choose: Callable[[Spec], Any]) -> Any:
    return jax.tree.map(choose, specs(config), is_leaf=is_spec)
