"""The names of the rows that `interp.decompose` gives, in its order: TransformerLens's names."""

from jaxformer.config import Config
from jaxformer.sites import shown


def component_labels(
    config: Config, layer: int | None = None, *, mlp_input: bool = False
) -> list[str]:
    """Of `decompose_resid`: embed, pos_embed, then each layer's attn_out and mlp_out.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> component_labels(config, 1, mlp_input=True)
    ['embed', '0_attn_out', '0_mlp_out', '1_attn_out']
    """
    layer = check_layer(config, layer, mlp_input=mlp_input)
    outs = ("attn_out", "mlp_out") if config.d_mlp else ("attn_out",)
    labels = _embeds(config) + [f"{i}_{out}" for i in range(layer) for out in outs]
    return labels + [f"{layer}_attn_out"] * attends_first(config, mlp_input=mlp_input)


def accumulated_labels(
    config: Config, layer: int | None = None, *, incl_mid: bool = False, mlp_input: bool = False
) -> list[str]:
    """Of `accumulated_resid`.

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
    """Of `head_results`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=32, n_vocab=5)
    >>> head_labels(config, 1, remainder=True)
    ['L0H0', 'L0H1', 'remainder']
    """
    layer = check_layer(config, layer)
    return _heads(config, layer) + ["remainder"] * remainder


def neuron_labels(config: Config, layer: int) -> list[str]:
    """Of `neuron_results`.

    >>> config = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=3, n_vocab=5)
    >>> neuron_labels(config, 1)
    ['L1N0', 'L1N1', 'L1N2']
    """
    check_layer(config, layer, mlp_input=True)
    return [f"L{layer}N{neuron}" for neuron in range(config.d_mlp)]


def full_labels(
    config: Config, layer: int | None = None, *, mlp_input: bool = False, neurons: bool = False
) -> list[str]:
    """Of `full_decomposition`.

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
    return [*heads, *mlps, *_embeds(config), "bias"]


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


def _embeds(config: Config) -> list[str]:
    return [site for site in ("embed", "pos_embed") if site in shown(config)]


def _heads(config: Config, layers: int) -> list[str]:
    return [f"L{layer}H{head}" for layer in range(layers) for head in range(config.n_heads)]
