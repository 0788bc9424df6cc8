"""Figures: a panel for each metric of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.figures import HEADS, draw_report, write_comparison, write_report

PANELS = {"loss (nats per token)", "learning rate", "milliseconds per step", "norm of the gradient"}


def lines(members: int = 1, watched: bool = False) -> list[dict[str, Any]]:
    """Return metrics of a run with 2 layers and 3 heads."""
    found: list[dict[str, Any]] = []
    many = () if members == 1 else (members,)
    for step in (0, 10, 20):
        spread = {"validation_loss_spread": 0.1} if members > 1 else {}
        line = {"step": step, "validation_loss": 3.0 - step / 20, **spread}
        if watched:
            line |= {name: np.full((*many, 2, 3), 0.5).tolist() for name in HEADS}
            line |= {"attn_update_norm": np.ones((*many, 2)).tolist()}
        found.append(line)
        numbers = {"loss": 3.0, "learning_rate": 0.1, "gradient_norm": 1.0}
        found.append({"step": step + 5, **numbers, "steps": 5, "seconds": 0.1})
    return found


def panels(figure: Any) -> set[str]:
    """Return the names of the panels; a heat map of heads is named by its title."""
    return {axes.get_title() or axes.get_ylabel() for axes in figure.axes if axes.axison} - {""}


@pytest.mark.parametrize("members", [1, 4])
def test_each_number_has_its_panel(members: int):
    assert panels(draw_report(lines(members), {"unigram": 2.7})) == PANELS
    watched = panels(draw_report(lines(members, watched=True), {}, perfect=0.5))
    assert watched == {*PANELS, *HEADS.values(), "norm of the updates"}


def test_yardsticks_and_the_floor_are_named_beside_the_losses():
    [losses, *_] = draw_report(lines(), {"unigram": 2.7}, perfect=0.5).axes
    assert {text.get_text() for text in losses.texts} == {"unigram", "perfect"}
    legend = losses.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]


def test_the_heads_panel_holds_every_head_of_the_first_member():
    given = lines(members=2, watched=True)
    for line in given:
        if "induction" in line:
            step = line["step"] / 100
            line["induction"] = [[[step, 0, 0], [0, 0, step + 0.5]], [[9, 9, 9], [9, 9, 9]]]
    [panel] = [a for a in draw_report(given, {}).axes if a.get_title() == HEADS["induction"]]
    [image] = panel.images
    shown = np.asarray(image.get_array())
    np.testing.assert_allclose(shown[0], [0, 0.1, 0.2])  # layer 0, head 0, at the bottom
    np.testing.assert_allclose(shown[5], [0.5, 0.6, 0.7])
    assert image.get_clim() == (0, 1)


@pytest.mark.slow
def test_pages_are_pictures(tmp_path: Path):
    write_report(tmp_path / "report.png", lines(watched=True), {"unigram": 2.7}, 0.5)
    write_report(tmp_path / "bare.png", lines()[:1], {})  # only the first line of a run
    write_comparison(tmp_path / "compare.png", {"a": lines(), "b": lines(members=3)})
    for name in ("report", "bare", "compare"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
