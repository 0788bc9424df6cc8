"""Comparison of runs: a table, a plot, and errors for folders without a run."""

import json
from pathlib import Path

import pytest

from tests.helpers.errors import check_names
from train import compare


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """The folders of two runs with different learning rates and numbers of steps."""
    folders = []
    for name, rate, best in (("a", 0.1, 1.5), ("b", 0.2, 1.25)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = {"context": 8, "seed": 0, "optimizer": {"learning_rate": rate, "clip": 1.0}}
        about = {"recipe": recipe, "corpus_sha256": "same"}
        (folder / "run.json").write_text(json.dumps(about))
        lines = [
            {"step": 0, "validation_loss": 3.0},
            {"step": 10, "loss": 2.5, "steps": 10, "seconds": 1.5}, {"step": 10, "validation_loss": best},
            {"step": 20, "loss": 2.0, "steps": 10, "seconds": 1.0}, {"step": 20, "validation_loss": 2.125},
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        folders.append(folder)
    return folders


def test_a_table_and_a_picture(runs: list[Path], tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare.main(["a", "b", "--out", "both.png"]) == 0
    out = capsys.readouterr().out
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in out.splitlines()
        if len(cells := line.strip("│┃").replace("┃", "│").split("│")) == 3
    }
    assert rows == {
        "": ["a", "b"],
        "best validation loss": ["1.5000", "1.2500"], "last validation loss": ["2.1250", "2.1250"],
        "steps": ["20", "20"], "seconds of training": ["2.5", "2.5"],
        "optimizer.learning_rate": ["0.1", "0.2"],
    }  # fmt: skip
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")
    assert "both.png" in out


def test_equal_runs_have_no_differences(runs: list[Path]):
    about, _ = compare.read_run(runs[0])
    other, _ = compare.read_run(runs[1])
    assert compare.differences({"a": about, "also a": dict(about)}) == []
    assert compare.differences({"a": about, "b": other}) == ["recipe.optimizer.learning_rate"]
    assert compare.differences({"a": about, "b": about | {"recipe.seed": 1}}) == ["recipe.seed"]


def test_folders_without_a_run_are_refused(runs: list[Path], tmp_path: Path, capsys):
    good, hurt = runs
    nothing, nowhere = tmp_path / "nothing", tmp_path / "no" / "where.png"
    (hurt / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    for args, named in (
        ([good, nothing], (nothing, "run.json")),
        ([good, hurt], (hurt,)),
        ([], ()),
        ([good, "--out", nowhere], (nowhere,)),
    ):
        assert compare.main([*map(str, args)]) == 1, args
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        check_names(error, *named)
    (good / "run.json").write_text('{"recipe": {')
    assert compare.main([str(good)]) == 1
    check_names(capsys.readouterr().err, good / "run.json")


def test_markup_is_printed_literally(runs: list[Path], tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = runs[0] / "run.json"
    about = json.loads(path.read_text())
    about["recipe"]["corpus"] = "[a-z]*[/b]"
    path.write_text(json.dumps(about))
    runs[0].rename("[red]")
    assert compare.main(["[red]", "b", "--out", "both.png"]) == 0
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "[a-z]*[/b]" in out
