"""Optimizers: optax's own transformations, wired to the model's Specs."""

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
    """The gradient transformation for a run of this many steps: clipping, then the named rule."""
    rule = RULES[settings.name](config, settings, steps)
    return optax.chain(optax.clip_by_global_norm(settings.clip), rule)


def adamw(config: Config, settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """Every parameter by its gradient's running mean over the root of its running square.

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; clipping and schedule
    as in Brown et al. 2020, app. B.
    """
    return optax.adamw(
        schedule(settings, settings.learning_rate, steps),
        b1=settings.beta1,
        b2=settings.beta2,
        weight_decay=settings.weight_decay,
        mask=decays(config),
    )


def muon(config: Config, settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """Matrices between hidden states by their momentum, made orthogonal; all the rest by Adam.

    As optax has it, both look ahead by Nesterov's momentum, so that Adam here is NAdam.

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
        # A function, because a tree with None in it would lose its place beside the parameters.
        muon_weight_dimension_numbers=lambda _: dimensions,
    )


RULES: dict[str, Callable[[Config, Optimizer, int], optax.GradientTransformation]] = {
    "adamw": adamw,
    "muon": muon,
}


def schedule(settings: Optimizer, peak: float, steps: int) -> optax.Schedule:
    """The learning rate of each step: up linearly from 0 to its peak, then down to its last share."""
    warmup = min(settings.warmup, steps // 2)
    fall = SHAPES[settings.schedule](settings, peak, steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), fall], [warmup])


def _cosine(settings: Optimizer, peak: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(steps, 1), alpha=settings.last_share)


def _stable(settings: Optimizer, peak: float, steps: int) -> optax.Schedule:
    """Source: Hu et al. 2024, "MiniCPM", §4: warm-up, stable, decay."""
    decay = max(round(settings.decay * steps), 1)
    last = optax.linear_schedule(peak, peak * settings.last_share, decay)
    return optax.join_schedules([optax.constant_schedule(peak), last], [steps - decay])


SHAPES: dict[str, Callable[[Optimizer, float, int], optax.Schedule]] = {
    "cosine": _cosine,
    "stable": _stable,
}


def decays(config: Config) -> Any:
    """Which parameters weight decay shrinks: the matrices, that is, those with axes to sum over."""
    return _by_spec(config, lambda spec: bool(spec.reads))


def orthogonal(config: Config) -> Any:
    """Which axes of a parameter Muon sums over and which it writes to; None where Adam serves.

    Muon is for maps from hidden states to hidden states, so whatever touches the vocabulary, the position
    table, norms and biases are Adam's. The layers of a stack are one matrix each.
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
