"""The command line of training: `python -m train [PRESET] [options]`."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro
from rich.console import Console

from train.corpora import load_corpus
from train.loop import Interrupted, Run, train
from train.presets import PRESETS, Recipe
from train.runs import RunError, open_run


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise ValueError(f"name={self.name!r} is not a folder's name; a path goes into --runs")
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
    recipe = PRESETS[preset]
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    return tyro.cli(
        Command,
        prog=f"python -m train {preset}",
        description=f"Train a model. Presets: {', '.join(PRESETS)}. The defaults below are those of {preset}.",
        default=Command(**fields, name=preset),
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status: 0 done, 1 an error, 130 stopped by Ctrl-C."""
    args = sys.argv[1:] if args is None else args
    console = Console()
    try:
        command = parse(args)
        recipe = command.recipe
        corpus = load_corpus(recipe.corpus, recipe.tokenizer, recipe.context)
        config = recipe.config.for_tokenizer(corpus.tokenizer)
        folder = command.runs / command.name
        open_run(folder, recipe, corpus.sha256, resume=command.resume, overwrite=command.overwrite)
        best = train(Run(recipe, config, corpus, folder, console), resume=command.resume)
    except Interrupted as interruption:
        again = [
            "python",
            "-m",
            "train",
            *(a for a in args if a not in ("--overwrite", "--resume")),
        ]
        print(f"{interruption}; go on with: {shlex.join(again)} --resume")
        return 130
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
    except (RunError, ValueError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"best validation loss {best:.4f}; everything is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
