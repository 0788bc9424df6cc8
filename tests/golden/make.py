"""Write the golden files: `python -m tests.golden.make`, with torch and transformers installed.

One file per family: for each tiny model its config as transformers saves it, its weights as whole numbers (of which
64 make 1), and in float64 what transformers computes: logits, the loss and its gradient (of each tensor the norm and
eight entries), and the tokens of greedy generation.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.helpers import hf
from tests.helpers.families import CASES, spots

FOLDER = Path(__file__).parent


def record(case: str) -> dict[str, Any]:
    """What the golden file holds of one model."""
    with tempfile.TemporaryDirectory() as folder:
        hf.build(case).save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        tensors = load_file(Path(folder) / "model.safetensors")
    names = sorted(tensors)
    whole = [np.rint(tensors[name] * 64).astype(np.int8).ravel() for name in names]
    found = hf.answers(case)
    gradients = {
        name.removeprefix("gradient "): g
        for name, g in found.items()
        if name.startswith("gradient ")
    }
    return {
        "config": json.dumps(config),
        "names": json.dumps({name: tensors[name].shape for name in names}),
        "weights": np.concatenate(whole),
        "gradients": np.array([spots(gradients[name]) for name in names]),
        **{name: found[name] for name in ("logits", "loss", "greedy")},
    }


def main() -> None:
    """All families' files."""
    for family in sorted({family for family, _, _ in CASES.values()}):
        held = {
            f"{case}/{part}": value
            for case, (own, _, _) in CASES.items()
            if own == family
            for part, value in record(case).items()
        }
        np.savez_compressed(FOLDER / f"{family}.npz", **held)


if __name__ == "__main__":
    main()
