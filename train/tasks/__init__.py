"""Toy tasks with a known answer, each small enough that a tiny model can be held against the best there is."""

from collections.abc import Callable

from train.tasks.brackets import brackets
from train.tasks.grammar import grammar
from train.tasks.induction import induction
from train.tasks.modular import modular_addition
from train.tasks.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "grammar": grammar,
    "induction": induction,
    "modular-addition": modular_addition,
    "brackets": brackets,
}
