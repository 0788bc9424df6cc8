"""What the stream is made of: the names of its components, and where a pass's activations hold them.

The labels are TransformerLens's; each function here lists those of a function in `interp.decompose`, of the
same arguments, in the order of its rows.
"""

from collections.abc import Mapping

from jaxtyping import Array, Float

from jaxformer.config import Config
from jaxformer.model.sites import AXES, WHOLE, shown


def component_labels(
    config: Config, layer: int | None = None, *, mlp_input: bool = False
) -> list[str]:
    """Those of `decompose_resid`: embed, pos_embed, then each layer's attn_out and mlp_out.

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
    """Those of `accumulated_resid`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> accumulated_labels(config, incl_mid=True)
    ['0_pre', '0_mid', '1_pre', '1_mid', 'final_post']
    """
    layer = check_layer(config, layer, mlp_input=mlp_input)
    check_mid(config, incl_mid=incl_mid)
    places = ("pre", "mid") if incl_mid else ("pre",)
    labels = [f"{i}_{place}" for i in range(layer) for place in places]
    labels.append("final_post" if layer == config.n_layers else f"{layer}_pre")
    return labels + [f"{layer}_mid"] * attends_first(config, mlp_input=mlp_input)


def head_labels(config: Config, layer: int | None = None, *, remainder: bool = False) -> list[str]:
    """Those of `head_results`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> head_labels(config, 1, remainder=True)
    ['L0H0', 'L0H1', 'remainder']
    """
    layer = check_layer(config, layer)
    return _heads(config, layer) + ["remainder"] * remainder


def neuron_labels(config: Config, layer: int) -> list[str]:
    """Those of `neuron_results`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=3, n_vocab=5)
    >>> neuron_labels(config, 1)
    ['L1N0', 'L1N1', 'L1N2']
    """
    check_layer(config, layer, mlp_input=True)
    return [f"L{layer}N{neuron}" for neuron in range(config.d_mlp)]


def full_labels(
    config: Config, layer: int | None = None, *, mlp_input: bool = False, neurons: bool = False
) -> list[str]:
    """Those of `full_decomposition`.

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
    """The layer whose input is meant, n_layers standing for the unembedding's.

    Raises:
        ValueError: a layer that is not there, or the input of an MLP that is not there. -1 is refused as
            well: to TransformerLens it means the final stream, to Python the last layer.
    """
    if layer is None:
        layer = config.n_layers
    if not 0 <= layer <= config.n_layers:
        raise ValueError(
            f"layer={layer} is not there; choose 0 to {config.n_layers}, or None for the final stream"
        )
    if mlp_input and not (config.d_mlp and layer < config.n_layers):
        why = "d_mlp=0" if not config.d_mlp else f"n_layers={config.n_layers}"
        raise ValueError(f"no MLP reads the stream at layer={layer}: this Config has {why}")
    return layer


def check_mid(config: Config, *, incl_mid: bool) -> None:
    """Refuse the stream between attention and MLP where there is none.

    Raises:
        ValueError: parallel blocks, or no MLPs.
    """
    if incl_mid and (config.parallel or not config.d_mlp):
        why = "parallel=True" if config.parallel else "d_mlp=0"
        raise ValueError(f"{why} leaves no stream between attention and MLP; use incl_mid=False")


def attends_first(config: Config, *, mlp_input: bool) -> bool:
    """Whether a layer's attention has written to the place meant: to what its MLP reads, if not in parallel.

    In a parallel block the MLP reads resid_pre, as the attention does. (TransformerLens adds attn_out there
    too, which the MLP never sees.)
    """
    return mlp_input and not config.parallel


def stream_at(
    config: Config,
    activations: Mapping[str, Array],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
) -> Float[Array, "t d"]:
    """The stream as a layer's attention, its MLP, or (None) the unembedding finds it, before the norm.

    Raises:
        ValueError: a layer that is not there, a site that was not captured.
    """
    layer = check_layer(config, layer, mlp_input=mlp_input)
    if layer < config.n_layers:
        site = "resid_mid" if attends_first(config, mlp_input=mlp_input) else "resid_pre"
        return captured(activations, site)[0][layer]
    if config.n_layers:
        return captured(activations, "resid_post")[0][-1]
    return sum(captured(activations, *embedding_sites(config)))  # pyright: ignore[reportReturnType]


def embedding_sites(config: Config) -> tuple[str, ...]:
    """The sites whose sum is the first state."""
    return tuple(site for site in ("embed", "pos_embed") if site in shown(config))


def writers(config: Config) -> tuple[str, ...]:
    """The sites of a layer's updates of the stream."""
    return ("attn_out", "mlp_out") if config.d_mlp else ("attn_out",)


def captured(activations: Mapping[str, Array], *sites: str) -> list[Array]:
    """The values of some sites, of one sequence.

    Raises:
        ValueError: naming those that are missing, or one that is of a batch.
    """
    if missing := [site for site in sites if site not in activations]:
        raise ValueError(
            f"the activations lack {' and '.join(map(repr, missing))}; "
            f"this needs forward(..., capture={sites})"
        )
    for site in sites:
        axes = AXES[site] if site in WHOLE else f"l {AXES[site]}"
        if activations[site].ndim != len(axes.split()):
            raise ValueError(
                f"{site!r} has shape {activations[site].shape}, not [{axes}]: "
                "give the activations of one sequence, and jax.vmap for a batch"
            )
    return [activations[site] for site in sites]


def _heads(config: Config, layers: int) -> list[str]:
    return [f"L{layer}H{head}" for layer in range(layers) for head in range(config.n_heads)]
