"""`python -m benchmarks` for the tests: ceilings that cost nothing, and a tiny model to time."""

import json
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as command
from benchmarks.roofline import Ceilings

TINY = ["--sizes", "baby", "--set", "n_layers=1", "d_model=8", "n_heads=2", "d_head=4", "d_mlp=8",
        "--batch", "2", "--seq", "6", "--repeats", "3"]  # fmt: skip
CEILINGS = Ceilings(matmul=1e11, copy=1e10, peak=None)


class Bench:
    """The command: its rows, and what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: Path, capsys: Any):
        monkeypatch.setattr(command, "measure", lambda *_: CEILINGS)
        self.path, self.capsys = room / "rows.jsonl", capsys

    def __call__(self, *arguments: str, status: int = 0) -> tuple[list[dict[str, Any]], str]:
        self.path.unlink(missing_ok=True)
        assert command.main([*arguments, "--json", str(self.path)]) == status
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        out, err = self.capsys.readouterr()
        return [json.loads(line) for line in text.splitlines()], out + err

    def refusal(self, *arguments: str) -> str:
        """The one line that says what is wrong with these arguments."""
        _, said = self(*arguments, status=1)
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        return line
