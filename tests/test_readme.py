"""The README's Python runs as it stands, and its commands are those of CI."""

import re
from pathlib import Path

import jax
import pytest

from jaxformer import Characters, init, save
from train.presets import PRESETS

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.usefixtures("standard_promotion")
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """On a model with the seed's sizes and fresh weights: its numbers are another run's."""
    tokenizer = Characters.of("abcdefghijklmnopqrstuvwxyz ")
    config = PRESETS["seed"]().config.for_tokenizer(tokenizer)
    save(tmp_path / "runs/seed/model", config, init(config, jax.random.key(0)), tokenizer)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  our own page
    assert capsys.readouterr().out.startswith("(4, 4, 28, 28)\n[[")


def test_every_path_that_the_readme_names_is_there():
    root = Path(__file__).parents[1]
    for line in README.split("## Read it")[1].split("```")[1].splitlines()[1:]:
        for name in re.findall(r"\b\w+\.py\b", line):
            assert (root / "jaxformer" / name).is_file(), name
