"""What to train, by name: each preset is one frozen `Recipe`, with what it reached."""

from jaxformer.config import Compute
from train.recipe import Architecture, Recipe

PRESETS = {
    "seed": Recipe(
        config=Architecture(n_layers=4, d_model=128, n_heads=4, d_head=32, d_mlp=512),
        compute=Compute(unroll=4),
    ),
}
