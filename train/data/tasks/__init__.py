"""Toy tasks whose best possible loss is known, small enough for a tiny model."""

from collections.abc import Callable

from train.data.tasks.brackets import brackets
from train.data.tasks.grammar import grammar
from train.data.tasks.induction import induction
from train.data.tasks.modular import modular_addition
from train.data.tasks.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "grammar": grammar,
    "induction": induction,
    "modular-addition": modular_addition,
    "brackets": brackets,
}
