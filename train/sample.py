"""Continue a text with a trained model, as it comes: `python -m train.sample runs/seed --prompt "..."`."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jaxformer.checkpoint import load
from jaxformer.config import Config
from jaxformer.sampling import Sampling
from jaxformer.streaming import stream_tokens
from jaxformer.tokenizer import Tokenizer, Tokens, stream_text
from train.about import read_about
from train.pace import Piece, pace, timed

CHUNK = 8
"""Tokens at a time: few enough to watch them come, enough that the program's calls cost little."""

AT_ONCE = 1_000_000
"""The most tokens to add where nothing says how many the model may see at once: it keeps room for all."""


@dataclass(frozen=True)
class Command:
    """Continue a prompt with the best model of a finished run, showing the text as it comes.

    Standard output gets the prompt and what follows it, nothing else; standard error the speed.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """the run's folder, or a folder with a model in it"""
    prompt: str = "\n"
    """the text to go on from; its characters must be the corpus's"""
    n: int = 500
    """tokens to add, at most"""
    temperature: float = 0.8
    """0 takes the likeliest token; 1 draws from the model's own distribution"""
    top_k: int | None = None
    """keep the k likeliest tokens"""
    top_p: float | None = None
    """keep the likeliest tokens that together have at least this probability"""
    min_p: float | None = None
    """keep the tokens at least this many times as likely as the likeliest"""
    repetition_penalty: float | None = None
    """above 1: what occurred before becomes less likely"""
    stop: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """texts of which any ends it, once it has come; may be repeated"""
    seed: int = 0
    """another seed, another text"""
    context: int | None = None
    """the most tokens that the model sees at once (as many as the run trained on); when they are full, the
    latest half of them is read anew"""


def begin(command: Command) -> tuple[Tokenizer, Tokens, Iterator[Tokens]]:
    """The tokenizer, the prompt, and the tokens that will follow it.

    Raises:
        ValueError: a folder that holds no one model with a tokenizer, or whatever is wrong with the command.
        OSError: the folder cannot be read.
    """
    folder, trained = find_model(command.run)
    config, params, tokenizer = load(folder)
    if tokenizer is None:
        raise ValueError(f"{folder} was saved without a tokenizer, so it cannot read a prompt")
    prompt = tokenizer.encode(command.prompt)
    context = fitting(config, trained) if command.context is None else command.context
    if (context or command.n) > AT_ONCE:
        what = f"n={command.n}" if context is None else f"context={context}"
        raise ValueError(
            f"{what} tokens are too many to see at once; choose a --context up to {AT_ONCE}"
        )
    pieces = stream_tokens(
        params,
        config,
        prompt,
        command.n,
        _key(command.seed),
        sampling=Sampling(
            temperature=command.temperature,
            top_k=command.top_k,
            top_p=command.top_p,
            min_p=command.min_p,
            repetition_penalty=command.repetition_penalty,
        ),
        stop=[stop_tokens(tokenizer, text) for texts in command.stop for text in texts] or None,
        context=context,
        chunk=CHUNK,
    )
    return tokenizer, prompt, pieces


def _key(seed: int) -> Any:
    try:
        return jax.random.key(seed)
    except OverflowError as error:
        raise ValueError(f"seed={seed} has more than 64 bits; choose a smaller one") from error


def find_model(run: Path) -> tuple[Path, int | None]:
    """A model's folder, and the context that it was trained on if a run's folder says so.

    Raises:
        ValueError: an ensemble's folder, which holds several models; a damaged `run.json`.
    """
    folder = run / "model" if (run / "run.json").is_file() else run
    members = run / "models"
    if folder != run and members.is_dir():
        raise ValueError(f"{run} is an ensemble's; name one of its models' folders in {members}")
    home = folder.parent.parent if folder.parent.name == "models" else folder.parent
    about = home / "run.json"
    return folder, read_about(about)["recipe"]["context"] if about.is_file() else None


def fitting(config: Config, context: int | None) -> int | None:
    """The context, or as much of it as a model's position table holds."""
    most = [rows for rows in (context, config.n_context) if rows is not None]
    return min(most, default=None)


def stop_tokens(tokenizer: Tokenizer, stop: str) -> Tokens:
    """The ids of a text that is to end another.

    Raises:
        ValueError: a text that never comes, or that is no text.
    """
    try:
        tokens = tokenizer.encode(stop)
    except ValueError as error:
        raise ValueError(f"the text to stop at, {stop!r}, cannot come: {error}") from error
    if not len(tokens):
        raise ValueError(f"the text to stop at, {stop!r}, is empty; give one that can come")
    return tokens


def show(texts: Iterable[str]) -> None:
    """Print texts as they come, and end the line whatever ends them."""
    begun = False
    try:
        for text in texts:
            begun = True
            print(text, end="", flush=True)
    finally:
        if begun:
            print(flush=True)


def main(args: list[str] | None = None) -> int:
    """The command line; the exit status: 0 done, 1 an error, 130 stopped by Ctrl-C, 141 nobody reads on."""
    command = tyro.cli(Command, prog="python -m train.sample", args=args)
    noted: list[Piece] = []
    try:
        tokenizer, prompt, pieces = begin(command)
        show(stream_text(tokenizer, itertools.chain([prompt], timed(pieces, noted))))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _hush()
        return 141
    except jax.errors.JaxRuntimeError as error:
        why = str(error).partition("\n")[0]
        print(f"error: the device cannot run this; lower --context ({why})", file=sys.stderr)
        return 1
    except (ValueError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(pace(noted), file=sys.stderr)
    return 0


def _hush() -> None:
    """Send what is still unwritten nowhere, where Python would complain about it on leaving."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
