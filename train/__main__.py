"""The command line of training: `python -m train [PRESET] [options]`."""

import dataclasses
import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
from rich.console import Console

from train.devices.guard import LOST, guard, guarded, leave
from train.devices.layout import lay_out
from train.devices.processes import (
    Group,
    Refused,
    by_first,
    check_agreement,
    check_devices,
    check_shared,
    is_first,
    is_loss,
)
from train.loop import Interrupted, train
from train.metrics import tensorboard
from train.recipe import Recipe
from train.run import Run
from train.runs import RunError, open_run, plain
from train.start import open_recipe, read_command, recipe_of


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
    mesh: str | None = None
    """devices to train on, as data=2,fsdp=2,tensor=2: sequences of a batch go to data and fsdp, parts of the model
    to fsdp and tensor, positions to sequence; the numbers stay the same"""
    rules: tuple[str, ...] = ()
    """AXIS=MESH-AXIS: other rules for the mesh: which part of the model (d n k f v), of the text (t) or of the
    batch lies along which of its axes; batch=data+fsdp for two, v=none for none"""
    coordinator: str | None = None
    """HOST:PORT of process 0, for a run of several processes, each started with this command; or auto: as SLURM,
    Kubernetes, Open MPI or a cloud TPU says"""
    processes: int | None = None
    """how many there are"""
    process: int | None = None
    """the number of this one, from 0"""
    patience: int = 60
    """seconds after which processes that are not there, or silent, are given up"""

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
        self.group.check()

    @property
    def group(self) -> Group:
        """The processes."""
        return Group(self.coordinator, self.processes, self.process, self.patience)

    @property
    def recipe(self) -> Recipe:
        """The part that decides the run's numbers."""
        return recipe_of(self)


def parse(args: list[str]) -> Command:
    """The command that the arguments describe; the first one may be a preset's name.

    Raises:
        ValueError: an unknown preset, or options that contradict each other.
    """
    return read_command(Command, "python -m train", args, lambda preset: {"name": preset})


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status: 0 done, 1 an error, 130 stopped by Ctrl-C, 143 by SIGTERM, 75 others lost.

    Options that a command line cannot have end it with 2, before anything is read.
    """
    args = sys.argv[1:] if args is None else args
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax's: what fails is said below, once
    try:
        command = parse(args)
    except ValueError as error:
        return _say(str(error))
    if command.coordinator is None:
        return _run(command, args)[0]
    if not guarded():
        return guard(args, command.group, _resume(args))
    status, together = _run(command, args)
    leave(status, together=together)
    return status


def _run(command: Command, args: list[str]) -> tuple[int, bool]:
    """The exit status, and whether all processes end here with the same."""
    try:
        best = _train(command)
    except Interrupted as interruption:
        if is_first():
            print(f"{interruption}; go on with: {_resume(args)}")
        return interruption.status, True
    except KeyboardInterrupt:
        print("stopped; what was saved before is whole", file=sys.stderr)
        return 130, False
    except MemoryError:
        return _say("not enough memory; lower --batch, --chunk or --context"), False
    except (RunError, ValueError, OSError, OverflowError, jax.errors.JaxRuntimeError) as error:
        why = str(error).partition("\n")[0]
        if is_loss(error):
            print(f"JAX says: {why}", file=sys.stderr)
            return LOST, False
        if isinstance(error, jax.errors.JaxRuntimeError):
            return _say(f"the device cannot run this; lower --batch or --config.* ({why})"), False
        together = isinstance(error, Refused)
        return (1 if together and not is_first() else _say(str(error))), together
    if is_first():
        print(f"best validation loss {best:.4f}; everything is in {command.runs / command.name}")
    return 0, True


def _train(command: Command) -> float:
    """Open what the command names, train, and return the lowest validation loss."""
    if command.coordinator is not None:
        command.group.join()
        check_devices()
        # Each host may have its own way to process 0, to the run's folder and to what it reads.
        own = dict.fromkeys(("process", "coordinator", "runs", "corpus", "start"))
        check_agreement(plain({**dataclasses.asdict(command), **own, "jax": jax.__version__}))
        if jax.process_count() > 1 and command.mesh is None:
            raise Refused(
                f"{jax.process_count()} processes need a mesh of their {jax.device_count()} devices; "
                f"give --mesh, as data={jax.device_count()}"
            )
    layout = lay_out(command.mesh, command.rules)
    recipe, config, data, first, start = open_recipe(command.recipe, layout)
    layout.check(recipe, config)
    folder = command.runs / command.name
    check_agreement({"corpus_sha256": data.sha256, "start_sha256": start})
    how = {"resume": command.resume, "overwrite": command.overwrite}
    listeners = (tensorboard(folder),) if command.tensorboard else ()
    by_first(lambda: open_run(folder, recipe, data.sha256, **how, start=start))
    check_shared(folder)
    console = Console(quiet=not is_first())
    run = Run(recipe, config, data, folder, console, command.keep, listeners, first, layout)
    return train(run, resume=command.resume).best()


def _resume(args: list[str]) -> str:
    """The command that goes on."""
    again = [a for a in args if a not in ("--overwrite", "--resume")]
    return f"{shlex.join(['python', '-m', 'train', *again])} --resume"


def _say(sentence: str) -> int:
    """The exit status of an error that was said."""
    print(f"error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
