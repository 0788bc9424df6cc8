"""Presets: named Recipes, with the loss that each has reached, the machine and the time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxformer.config import Compute
from train.recipe import Architecture, Optimizer, Recipe

SEED = Architecture(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512)
DEEP = Architecture(n_layers=6, d_model=104, n_heads=4, d_head=26, d_mlp=424)
"""Deeper and narrower; its number of parameters is within 1 % of SEED's."""
TOY = Architecture(n_layers=2, d_model=64, n_heads=4, d_head=16, d_mlp=256, norm="rms")


def seed() -> Recipe:
    """The seed model: no positions, no norms, no biases, about 0.8 M parameters.

    It trains on the English prose that ships with every Python, without a download. Validation loss 1.602 after 46 s
    in all, on two cores of a Xeon: `python -m train`.
    """
    return Recipe(config=SEED, compute=Compute(unroll=4))


def nanogpt_cpu() -> Recipe:
    """NanoGPT's recipe for a CPU, for comparison: its model, text, batches, steps and AdamW.

    Two things differ: the initial values preserve variance instead of N(0, 0.02²), and the embeddings have no weight
    decay. Loss 1.746 on the validation split after 132 s in all, on two cores of a Xeon: `python -m train nanogpt-cpu`.
    """
    return Recipe(
        config=replace(
            SEED, position="learned", n_context=64, norm="layer", activation="gelu", tied=True
        ),
        corpus="shakespeare",
        context=64,
        batch=12,
        steps=2000,
        optimizer=Optimizer(learning_rate=1e-3),
        compute=Compute(unroll=4),
        validate_every=500,
    )


def baby() -> Recipe:
    """The text, tokens and number of parameters of nanogpt-cpu, with the best choices found so far.

    Deeper and narrower, rotary positions, RMS norms, squared ReLU, longer sequences in more and smaller batches,
    shuffled windows, Muon. Loss 1.537 on the validation split (mean of seeds 0 to 2), in about 6 minutes on one core of
    a Xeon: `python -m train baby --seed 0`.
    """
    return Recipe(
        config=replace(DEEP, position="rotary", norm="rms", activation="relu_squared"),
        corpus="shakespeare",
        context=256,
        batch=2,
        order="shuffled",
        steps=3000,
        optimizer=Optimizer(
            name="muon", learning_rate=0.01, adam_learning_rate=2e-3, final_lr_fraction=0.0
        ),
        compute=Compute(unroll=6),
        validate_every=500,
    )


def seed_best() -> Recipe:
    """The budget of baby for a seed model, without positions, norms and biases; the other choices are the best found.

    Loss 1.660 on the validation split (mean of seeds 0 to 2), in about 5 minutes on one core of a Xeon:
    `python -m train seed-best --seed 0`.
    """
    return Recipe(
        config=replace(DEEP, activation="gelu"),
        corpus="shakespeare",
        context=64,
        batch=8,
        order="shuffled",
        steps=3000,
        optimizer=Optimizer(
            name="muon", learning_rate=0.006, adam_learning_rate=3e-3, final_lr_fraction=0.0
        ),
        compute=Compute(unroll=6),
        validate_every=500,
    )


def grammar() -> Recipe:
    """Stories from a grammar with known entropy: a perfect model has 0.448 nats per word; this one reached 0.452."""
    return Recipe(
        config=replace(TOY, position="rotary"),
        corpus="grammar",
        context=64,
        batch=32,
        steps=1500,
        compute=Compute(unroll=2),
        validate_every=250,
        watch=("previous-token", "pattern-entropy"),
    )


def induction() -> Recipe:
    """Two attention layers without MLPs must form an induction head; with --config.n-layers 1 none can form.

    Loss 0.009 nats (a perfect model has 0) and a best induction score of 0.94, in under two minutes on two busy cores.
    """
    return Recipe(
        config=replace(TOY, d_mlp=0, position="learned", n_context=63),
        corpus="induction",
        context=63,
        batch=32,
        steps=1000,
        compute=Compute(unroll=2),
        validate_every=100,
        watch=("induction", "previous-token"),
    )


def brackets() -> Recipe:
    """Decide whether 32 brackets are balanced: a perfect model has 0 nats; this one reached 0.0001."""
    return Recipe(
        config=replace(TOY, position="learned", n_context=33),
        corpus="brackets",
        context=33,
        batch=64,
        steps=1000,
        compute=Compute(unroll=2),
        validate_every=250,
        watch=("pattern-entropy",),
    )


def grok() -> Recipe:
    """Grokking: addition mod 113 from 30 % of all pairs. The model memorizes them first and generalizes much later.

    Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability", §3. Same
    model; batches of 512 and a higher learning rate.
    """
    return Recipe(
        config=replace(SEED, n_layers=1, position="learned", n_context=3),
        corpus="modular-addition",
        context=3,
        batch=512,
        steps=4000,
        optimizer=Optimizer(warmup=10, beta2=0.98, weight_decay=1.0, final_lr_fraction=1.0),
        validate_every=250,
        watch=("update-norm",),
    )


def nanogpt_char() -> Recipe:
    """NanoGPT's recipe for a GPU, for comparison: 10.7 M parameters, without dropout. Not run yet."""
    return Recipe(
        config=Architecture(
            n_layers=6, d_model=384, n_heads=6, d_head=64, d_mlp=1536,
            position="learned", n_context=256, norm="layer", activation="gelu", tied=True,
        ),
        corpus="shakespeare",
        context=256,
        batch=64,
        steps=5000,
        optimizer=Optimizer(learning_rate=1e-3),
        compute=Compute(dtype="bfloat16", kernel="fused"),
        validate_every=250,
    )  # fmt: skip


def gpt2_124m() -> Recipe:
    """The smallest GPT-2, for a large GPU; needs --corpus with a file from `train.prepare`. Not run yet."""
    return Recipe(
        config=Architecture(
            n_layers=12, d_model=768, n_heads=12, d_head=64, d_mlp=3072, position="learned",
            n_context=1024, norm="layer", activation="gelu_tanh", bias="all", tied=True,
        ),
        corpus="text.tokens",
        tokenizer="bytes",
        context=1024,
        batch=480,
        accumulate=40,
        steps=20_000,
        optimizer=Optimizer(learning_rate=6e-4, warmup=700, beta2=0.95),
        compute=Compute(dtype="bfloat16", kernel="fused", remat="dots"),
        chunk=10,
        validate_every=500,
    )  # fmt: skip


def gpt2_15b() -> Recipe:
    """The largest GPT-2, 1.5 B parameters: `python -m train.plan gpt2-1.5b --mesh data=8,fsdp=32`. Not run yet."""
    return replace(
        gpt2_124m(),
        config=Architecture(
            n_layers=48, d_model=1600, n_heads=25, d_head=64, d_mlp=6400, position="learned", n_vocab=50_257,
            n_context=1024, norm="layer", activation="gelu_tanh", bias="all", tied=True,
        ),
        batch=512,
        accumulate=1,
        optimizer=Optimizer(learning_rate=1.5e-4, warmup=700, beta2=0.95),
        compute=Compute(dtype="bfloat16", kernel="fused", remat="block"),
    )  # fmt: skip


def llama_7b() -> Recipe:
    """Llama 2's architecture at 7 B parameters, for planning: `--mesh fsdp=64`. Not run yet.

    Source: Touvron et al. 2023, "Llama 2", table 1 and appendix A.2.1.
    """
    return _llama(n_layers=32, d_model=4096, n_heads=32, d_mlp=11_008, learning_rate=3e-4)


def llama_70b() -> Recipe:
    """Llama 2's architecture at 70 B parameters, for planning: `--mesh fsdp=64,tensor=8`. Not run yet."""
    return _llama(
        n_layers=80, d_model=8192, n_heads=64, n_kv_heads=8, d_mlp=28_672, learning_rate=1.5e-4
    )


def _llama(*, learning_rate: float, **sizes: Any) -> Recipe:
    return Recipe(
        config=Architecture(
            **sizes, d_head=128, n_vocab=32_000, position="rotary", norm="rms", activation="silu", gated=True,
        ),
        corpus="text.tokens",
        tokenizer="bytes",
        context=4096,
        batch=1024,
        steps=500_000,
        optimizer=Optimizer(learning_rate=learning_rate, warmup=2000, beta2=0.95),
        compute=Compute(dtype="bfloat16", kernel="fused", remat="block"),
        chunk=10,
        validate_every=500,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], Recipe]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        seed, nanogpt_cpu, baby, seed_best, grammar, induction, brackets, grok, nanogpt_char, gpt2_124m,
        llama_7b, llama_70b,
    )
} | {"gpt2-1.5b": gpt2_15b}  # fmt: skip
"""The presets by name."""
