"""How far every family is from transformers, as a table: `python -m tests.golden.report`.

Errors are the largest of any logit over the largest logit, and of any recorded gradient entry over the largest, in
all tiny models of a family.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import forward, load
from jaxformer.pretrained.exporting import foreign_tensors
from jaxformer.pretrained.families import FAMILIES
from tests.helpers.families import CASES, TOKENS, golden, logits_and_gradient, spots


def errors(case: str) -> tuple[float, float, float]:
    """Of logits in float32, of logits in float64, and of gradients in float64."""
    record = golden(case)
    with tempfile.TemporaryDirectory() as folder:
        record.write(Path(folder))
        params, config, _ = load(folder, dtype="float64")
        narrow = load(folder, dtype="float32").params
    _, logits, gradient = logits_and_gradient(params, config)
    with jax.enable_x64(False):
        tokens = jnp.asarray(TOKENS, jnp.int32)
        single = np.asarray(jax.jit(forward)(narrow, config, tokens).logits)
    theirs = foreign_tensors(FAMILIES[CASES[case][0]], gradient, config)
    slopes = [far(spots(theirs[name]), expected) for name, expected in record.gradients.items()]
    return far(single, record.logits), far(logits, record.logits), max(slopes)


def far(found: Any, expected: np.ndarray) -> float:
    """The largest difference over the largest number."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def main() -> None:
    """One row per family."""
    for family in FAMILIES:
        cases = [case for case, (own, _, _) in CASES.items() if own == family]
        version = golden(cases[0]).config["transformers_version"]
        with jax.enable_x64(True):
            worst = np.max([errors(case) for case in cases], axis=0)
        numbers = " | ".join(f"{error:.1e}" for error in worst)
        print(f"| `{family}` | {len(cases)} | {version} | {numbers} |")


if __name__ == "__main__":
    main()
