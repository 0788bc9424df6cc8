"""The components of the residual stream: their labels, and the captured sites that hold them.

Each label function here takes the arguments of a function in `interp.decompose` and returns the labels of its rows, in
order. The labels are those of TransformerLens.
"""

from collections.abc import Mapping

from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.sites import AXES, MODEL_SITES, available_sites


def component_labels(
    config: Config, layer: int | None = None, *, mlp_input: bool = False
) -> list[str]:
    """Return the labels of `decompose_resid`: embed, pos_embed, then each layer's attn_out and mlp_out.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> component_labels(config, 1, mlp_input=True)
    ['embed', '0_attn_out', '0_mlp_out', '1_attn_out']
    """
    layer = check_layer(config, layer, mlp_input=mlp_input)
    outs = writers(config)
    labels = [*embedding_sites(config)] + [f"{i}_{out}" for i in range(layer) for out in outs]
    return labels + [f"{layer}_attn_out"] * attends_first(config, mlp_input=mlp_input)


def accumulated_labels(
    config: Config, layer: int | None = None, *, incl_mid: bool = False, mlp_input: bool = False
) -> list[str]:
    """Return the labels of `accumulated_resid`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> accumulated_labels(config, incl_mid=True)
    ['0_pre', '0_mid', '1_pre', '1_mid', 'final_post']
    """
    layer = check_layer(config, layer, mlp_input=mlp_input)
    check_mid(config, incl_mid=incl_mid)
    sites = ("pre", "mid") if incl_mid else ("pre",)
    labels = [f"{i}_{site}" for i in range(layer) for site in sites]
    labels.append("final_post" if layer == config.n_layers else f"{layer}_pre")
    return labels + [f"{layer}_mid"] * attends_first(config, mlp_input=mlp_input)


def head_labels(config: Config, layer: int | None = None, *, remainder: bool = False) -> list[str]:
    """Return the labels of `head_results`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> head_labels(config, 1, remainder=True)
    ['L0H0', 'L0H1', 'remainder']
    """
    layer = check_layer(config, layer)
    return _heads(config, layer) + ["remainder"] * remainder


def neuron_labels(config: Config, layer: int) -> list[str]:
    """Return the labels of `neuron_results`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=3, n_vocab=5)
    >>> neuron_labels(config, 1)
    ['L1N0', 'L1N1', 'L1N2']
    """
    check_layer(config, layer, mlp_input=True)
    return [f"L{layer}N{neuron}" for neuron in range(config.d_mlp)]


def full_labels(
    config: Config, layer: int | None = None, *, mlp_input: bool = False, neurons: bool = False
) -> list[str]:
    """Return the labels of `full_decomposition`.

    >>> config = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> full_labels(config)
    ['L0H0', 'L0H1', '0_mlp_out', 'embed', 'bias']
    """
    layer = check_layer(config, layer, mlp_input=mlp_input)
    heads = _heads(config, layer + attends_first(config, mlp_input=mlp_input))
    mlps: list[str] = []
    if config.d_mlp:
        mlps = [
            label
            for i in range(layer)
            for label in (neuron_labels(config, i) if neurons else [f"{i}_mlp_out"])
        ]
    return [*heads, *mlps, *embedding_sites(config), "bias"]


def check_layer(config: Config, layer: int | None, *, mlp_input: bool = False) -> int:
    """Return the layer whose input is meant; None becomes n_layers, which stands for the unembedding.

    Raises:
        ValueError: a layer out of range, or the input of an MLP that does not exist. -1 is refused as well: it means
            the final stream in TransformerLens, but the last layer in Python.
    """
    if layer is None:
        layer = config.n_layers
    if not 0 <= layer <= config.n_layers:
        raise ValueError(
            f"layer={layer} is out of range; choose 0 to {config.n_layers}, or None for the final stream"
        )
    if mlp_input and not (config.d_mlp and layer < config.n_layers):
        why = "d_mlp=0" if not config.d_mlp else f"n_layers={config.n_layers}"
        raise ValueError(f"no MLP reads the stream at layer={layer}: this Config has {why}")
    return layer


def check_mid(config: Config, *, incl_mid: bool) -> None:
    """Refuse incl_mid if the model has no stream between attention and MLP.

    Raises:
        ValueError: incl_mid with parallel blocks, or without MLPs.
    """
    if incl_mid and (config.parallel or not config.d_mlp):
        why = "parallel=True" if config.parallel else "d_mlp=0"
        raise ValueError(f"{why} leaves no stream between attention and MLP; use incl_mid=False")


def attends_first(config: Config, *, mlp_input: bool) -> bool:
    """Whether the stream meant includes this layer's attn_out: the input of an MLP does, except in a parallel block.

    In a parallel block the MLP reads resid_pre, as the attention does. (TransformerLens adds attn_out there
    too, which the MLP never reads.)
    """
    return mlp_input and not config.parallel


def stream_at(
    config: Config,
    activations: Mapping[str, Array],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
) -> Float[Array, "t d"]:
    """Return the input of a layer's attention, of its MLP or (None) of the unembedding, before the norm.

    Raises:
        ValueError: a layer out of range, a site that was not captured.
    """
    layer = check_layer(config, layer, mlp_input=mlp_input)
    if layer < config.n_layers:
        site = "resid_mid" if attends_first(config, mlp_input=mlp_input) else "resid_pre"
        return captured(activations, site)[0][layer]
    if config.n_layers:
        return captured(activations, "resid_post")[0][-1]
    return sum(captured(activations, *embedding_sites(config)))  # pyright: ignore[reportReturnType]


def embedding_sites(config: Config) -> tuple[str, ...]:
    """Return the sites whose sum is the input of the first layer."""
    return tuple(site for site in ("embed", "pos_embed") if site in available_sites(config))


def writers(config: Config) -> tuple[str, ...]:
    """Return the sites of what a layer adds to the stream."""
    return ("attn_out", "mlp_out") if config.d_mlp else ("attn_out",)


def captured(activations: Mapping[str, Array], *sites: str) -> list[Array]:
    """Return the values of some sites, for one sequence.

    Raises:
        ValueError: a site that was not captured, or that was captured for a batch.
    """
    if missing := [site for site in sites if site not in activations]:
        raise ValueError(
            f"the activations lack {' and '.join(map(repr, missing))}; "
            f"this needs forward(..., capture={sites})"
        )
    for site in sites:
        axes = AXES[site] if site in MODEL_SITES else f"l {AXES[site]}"
        if activations[site].ndim != len(axes.split()):
            raise ValueError(
                f"{site!r} has shape {activations[site].shape}, not [{axes}]; "
                "give the activations of one sequence, and use jax.vmap for a batch"
            )
    return [activations[site] for site in sites]


def _heads(config: Config, layers: int) -> list[str]:
    return [f"L{layer}H{head}" for layer in range(layers) for head in range(config.n_heads)]
