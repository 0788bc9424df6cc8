"""The command line of training: `python -m train [PRESET] [options]`."""

import dataclasses
import inspect
import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro
from rich.console import Console

from train.listeners import tensorboard
from train.loop import Interrupted, train
from train.presets import PRESETS
from train.recipe import Recipe
from train.run import Run
from train.runs import RunError, open_run
from train.start import open_recipe


@dataclass(frozen=True, kw_only=True)
class Command(Recipe):
    """A Recipe, and where its run goes."""

    name: str = "run"
    """of the run: the name of its folder"""
    runs: Path = Path("runs")
    """the folder of all runs"""
    resume: bool = False
    """go on from the run's last checkpoint; give the options that it was started with"""
    overwrite: bool = False
    """replace the run that has this name"""
    keep: int = 1
    """last checkpoints to keep, besides the best one"""
    tensorboard: bool = False
    """write the metrics for TensorBoard too"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise ValueError(f"name={self.name!r} is not a folder's name; a path goes into --runs")
        if self.keep < 1:
            raise ValueError(f"keep={self.keep} must be at least 1: the one to resume from")
        if self.resume and self.overwrite:
            raise ValueError(
                "--resume keeps the run that --overwrite would remove; give one of them"
            )

    @property
    def recipe(self) -> Recipe:
        """The part that decides the run's numbers."""
        return Recipe(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Recipe)})


def parse(args: list[str]) -> Command:
    """The command that the arguments describe; the first one may be a preset's name.

    Raises:
        ValueError: an unknown preset, or options that contradict each other.
    """
    preset, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("seed", args)
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; choose from {', '.join(PRESETS)}")
    recipe = PRESETS[preset]()
    given = [argument.partition("=")[0].replace("_", "-") for argument in rest]
    unread = [name for name in given if name == "--tokenizer" or name.startswith("--config.")]
    if "--start" in given and unread:
        raise ValueError(
            f"{unread[0]} would not be read: a run with --start has the architecture and the tokenizer of "
            "that model; leave one of them out"
        )
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    return tyro.cli(
        Command,
        prog=f"python -m train {preset}",
        description=f"{inspect.getdoc(PRESETS[preset])}\n\nPresets: {', '.join(PRESETS)}.",
        default=Command(**fields, name=preset),
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status: 0 done, 1 an error, 130 stopped by Ctrl-C, 143 by SIGTERM.

    Options that a command line cannot have end it with 2, before anything is read.
    """
    args = sys.argv[1:] if args is None else args
    console = Console()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax's: what fails is said below, once
    try:
        command = parse(args)
        recipe, config, data, first, start = open_recipe(command.recipe)
        folder = command.runs / command.name
        listeners = (tensorboard(folder),) if command.tensorboard else ()
        how = {"resume": command.resume, "overwrite": command.overwrite}
        open_run(folder, recipe, data.sha256, **how, start=start)
        run = Run(recipe, config, data, folder, console, command.keep, listeners, first)
        best = train(run, resume=command.resume).best()
    except Interrupted as interruption:
        again = [
            "python",
            "-m",
            "train",
            *(a for a in args if a not in ("--overwrite", "--resume")),
        ]
        print(f"{interruption}; go on with: {shlex.join(again)} --resume")
        return interruption.status
    except KeyboardInterrupt:
        print("stopped; what was saved before is whole", file=sys.stderr)
        return 130
    except jax.errors.JaxRuntimeError as error:
        why = str(error).partition("\n")[0]
        print(
            f"error: the device cannot run this; lower --batch or --config.* ({why})",
            file=sys.stderr,
        )
        return 1
    except MemoryError:
        print("error: not enough memory; lower --batch, --chunk or --context", file=sys.stderr)
        return 1
    except (RunError, ValueError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"best validation loss {best:.4f}; everything is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
