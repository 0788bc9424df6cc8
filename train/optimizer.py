"""AdamW with warm-up, cosine decay and clipping: optax's parts, wired to the model's Specs."""

from typing import Any

import jax
import optax

from jaxformer.config import Config
from jaxformer.spec import Spec
from jaxformer.transformer import specs
from train.presets import AdamW


def make_optimizer(config: Config, adamw: AdamW, steps: int) -> optax.GradientTransformation:
    """The gradient transformation for a run of this many steps.

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; the schedule and the
    clipping as in Radford et al. 2019 and Brown et al. 2020, app. B.
    """
    return optax.chain(
        optax.clip_by_global_norm(adamw.clip),
        optax.adamw(
            schedule(adamw, steps),
            b1=adamw.beta1,
            b2=adamw.beta2,
            weight_decay=adamw.weight_decay,
            mask=decays(config),
        ),
    )


def schedule(adamw: AdamW, steps: int) -> optax.Schedule:
    """The learning rate of each step: up linearly from 0, then down a half cosine to its last share."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=adamw.learning_rate,
        warmup_steps=min(adamw.warmup, steps // 2),
        decay_steps=steps,
        end_value=adamw.learning_rate * adamw.last_share,
    )


def decays(config: Config) -> Any:
    """Which parameters weight decay shrinks: the matrices, that is, those with axes to sum over."""
    return jax.tree.map(
        lambda s: bool(s.reads), specs(config), is_leaf=lambda node: isinstance(node, Spec)
    )
