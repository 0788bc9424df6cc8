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
    """A Recipe, where to save its run, and the devices to train on."""

    name: str = "run"
    """name of the run and of its folder"""
    runs: Path = Path("runs")
    """folder that holds all runs"""
    resume: bool = False
    """resume from the last checkpoint; give the same options as at the start"""
    overwrite: bool = False
    """replace an existing run of this name"""
    keep: int = 1
    """number of latest checkpoints to keep, besides the best one"""
    tensorboard: bool = False
    """also write the metrics for TensorBoard"""
    mesh: str | None = None
    """mesh of devices, such as data=2,fsdp=2,tensor=2. data, fsdp: shard the sequences of a batch; fsdp, tensor: shard
    the model; sequence: shard positions"""
    rules: tuple[str, ...] = ()
    """AXIS=MESH-AXIS: shard an axis of the model (d n k f v), the positions (t) or the batch along another mesh axis;
    batch=data+fsdp: along two; v=none: along none"""
    coordinator: str | None = None
    """HOST:PORT of process 0, for a run of several processes, each started with this command; auto: found from SLURM,
    Kubernetes, Open MPI or a cloud TPU"""
    processes: int | None = None
    """number of processes"""
    process: int | None = None
    """rank of this process, from 0"""
    timeout: int = 60
    """seconds to wait for a process that does not start or does not answer"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise ValueError(
                f"name={self.name!r} is not the name of a folder; put a path into --runs"
            )
        if self.keep < 1:
            raise ValueError(f"keep={self.keep} must be at least 1, the checkpoint to resume from")
        if self.resume and self.overwrite:
            raise ValueError(
                "--resume needs the run that --overwrite removes; give only one of them"
            )
        self.group.check()

    @property
    def group(self) -> Group:
        """The processes of the run."""
        return Group(self.coordinator, self.processes, self.process, self.timeout)

    @property
    def recipe(self) -> Recipe:
        """The part that determines the numbers of the run."""
        return recipe_of(self)


def parse(args: list[str]) -> Command:
    """Parse the arguments; the first one may be the name of a preset.

    Raises:
        ValueError: an unknown preset, or options that contradict each other.
    """
    return read_command(Command, "python -m train", args, lambda preset: {"name": preset})


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done; 1: an error; 2: unknown options; 75: another process is lost; 130: stopped by Ctrl-C; 143: by SIGTERM.
    """
    args = sys.argv[1:] if args is None else args
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors of orbax, which `_run` reports
    try:
        command = parse(args)
    except ValueError as error:
        return _report(str(error))
    if command.coordinator is None:
        return _run(command, args)[0]
    if not guarded():
        return guard(args, command.group, _resume(args))
    status, together = _run(command, args)
    leave(status, together=together)
    return status


def _run(command: Command, args: list[str]) -> tuple[int, bool]:
    """Train; return the exit status, and whether all processes of the run end at this point."""
    try:
        best = _train(command)
    except Interrupted as interruption:
        if is_first():
            print(f"{interruption}; continue with: {_resume(args)}")
        return interruption.status, True
    except KeyboardInterrupt:
        print("stopped; the checkpoints saved so far are complete", file=sys.stderr)
        return 130, False
    except MemoryError:
        return _report("out of memory; lower --batch, --chunk or --context"), False
    except (RunError, ValueError, OSError, OverflowError, jax.errors.JaxRuntimeError) as error:
        why = str(error).partition("\n")[0]
        if is_loss(error):
            print(f"error from JAX: {why}", file=sys.stderr)
            return LOST, False
        if isinstance(error, jax.errors.JaxRuntimeError):
            return _report(
                f"the device cannot run this; lower --batch or --config.* ({why})"
            ), False
        together = isinstance(error, Refused)
        return (1 if together and not is_first() else _report(str(error))), together
    if is_first():
        print(f"best validation loss {best:.4f}; everything is in {command.runs / command.name}")
    return 0, True


def _train(command: Command) -> float:
    """Open the data and the run's folder, train, and return the lowest validation loss."""
    if command.coordinator is not None:
        command.group.join()
        check_devices()
        # These options may differ between hosts: each has its own paths and its own address of process 0.
        own = dict.fromkeys(("process", "coordinator", "runs", "corpus", "start"))
        check_agreement(plain({**dataclasses.asdict(command), **own, "jax": jax.__version__}))
        if jax.process_count() > 1 and command.mesh is None:
            raise Refused(
                f"{jax.process_count()} processes need a mesh of their {jax.device_count()} devices; "
                f"give --mesh, such as --mesh data={jax.device_count()}"
            )
    layout = lay_out(command.mesh, command.rules)
    recipe, config, data, first, start = open_recipe(command.recipe, layout)
    layout.check(recipe, config)
    folder = command.runs / command.name
    check_agreement({"corpus_sha256": data.sha256, "start_sha256": start})
    listeners = (tensorboard(folder),) if command.tensorboard else ()
    resume, overwrite = command.resume, command.overwrite
    by_first(
        lambda: open_run(
            folder, recipe, data.sha256, resume=resume, overwrite=overwrite, start=start
        )
    )
    check_shared(folder)
    console = Console(quiet=not is_first())
    run = Run(recipe, config, data, folder, console, command.keep, listeners, first, layout)
    return train(run, resume=command.resume).best()


def _resume(args: list[str]) -> str:
    """Return the command that resumes this run."""
    again = [a for a in args if a not in ("--overwrite", "--resume")]
    return f"{shlex.join(['python', '-m', 'train', *again])} --resume"


def _report(sentence: str) -> int:
    """Print an error and return its exit status."""
    print(f"error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
