"""Continue a text with a trained model, as it comes: `python -m train.sample runs/seed --prompt "..."`."""

import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import Int

from jaxformer.config import Config
from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.streaming import stream_tokens
from jaxformer.pretrained.load import load
from jaxformer.text.subwords import Subwords
from jaxformer.text.tokenizer import Tokenizer, Tokens, stream_text
from train.data.encoding import frame, opening, sayable
from train.runs import find_model

CHUNK = 8
"""Tokens at a time: few enough to watch them come, enough that the program's calls cost little."""

AT_ONCE = 1_000_000
"""The most tokens to add where nothing says how many the model may see at once: it keeps room for all."""


@dataclass(frozen=True)
class Command:
    """Continue a prompt with the best model of a finished run, or any other, showing the text as it comes.

    Standard output gets the prompt and what follows it, nothing else; standard error the speed.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """a run's folder, a model's folder (ours or Hugging Face's), a GGUF file, or an id in Hugging Face's hub, as
    org/name"""
    prompt: str | None = None
    """the text to go on from, of characters that the model's tokenizer knows; left out: what its tokenizer begins
    every text with, or a new line"""
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
    """the most tokens that the model sees at once; when they are full, the latest half of them is read anew. Left
    out: as many as the run trained on, or as the position table has; without either, as many as 1 GiB of keys
    and values hold"""


class Text(NamedTuple):
    """A text that is about to come."""

    tokenizer: Tokenizer
    prompt: Tokens
    """as it is shown: without what the tokenizer puts before every text"""
    pieces: Iterator[Tokens]
    stops: tuple[str, ...]
    """texts of which any ends it, if it is read as characters: the same text may be made of other subwords"""


def begin(command: Command) -> Text:
    """The prompt, and the tokens that will follow it.

    Raises:
        ValueError: a folder that holds no one model with a tokenizer, or whatever is wrong with the command.
        OSError: the model cannot be read.
    """
    place, trained = find_model(command.model)
    config, params, tokenizer = load(place)
    if tokenizer is None:
        raise ValueError(f"{place} has no tokenizer, so it cannot read a prompt")
    prompt = opening(tokenizer, first_text(tokenizer) if command.prompt is None else command.prompt)
    context = fitting(config, trained) if command.context is None else command.context
    if (context or command.n) > AT_ONCE:
        what = f"n={command.n}" if context is None else f"context={context}"
        raise ValueError(
            f"{what} tokens are too many to see at once; choose a --context up to {AT_ONCE}"
        )
    stops = tuple(text for texts in command.stop for text in texts)
    stop = [stop_tokens(tokenizer, text) for text in stops]
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
        stop=None if isinstance(tokenizer, Subwords) else stop or None,
        edit=sayable(config, tokenizer),
        context=room(config, params.W_E.dtype.itemsize) if context is None else context,
        chunk=CHUNK,
    )
    shown = prompt[len(frame(tokenizer).before) :]
    return Text(tokenizer, shown, pieces, stops if isinstance(tokenizer, Subwords) else ())


def first_text(tokenizer: Tokenizer) -> str:
    """What to go on from where no prompt is given: what begins every text, or else a new line.

    Raises:
        ValueError: the tokenizer has neither.
    """
    if len(frame(tokenizer).before):
        return ""
    try:
        some = len(tokenizer.encode("\n")) > 0
    except ValueError:
        some = False
    if not some:
        raise ValueError("this model's tokenizer knows no new line to begin with; give a --prompt")
    return "\n"


def _key(seed: int) -> Any:
    try:
        return jax.random.key(seed)
    except OverflowError as error:
        raise ValueError(f"seed={seed} has more than 64 bits; choose a smaller one") from error


def fitting(config: Config, context: int | None) -> int | None:
    """The context, or as much of it as a model's position table holds."""
    most = [rows for rows in (context, config.n_context) if rows is not None]
    return min(most, default=None)


def room(config: Config, itemsize: int) -> int:
    """How many tokens a GiB of keys and values holds."""
    size = config.sizes
    row = 2 * size["l"] * size["k"] * size["h"] * itemsize
    return min(max(2**30 // max(row, 1), 1), AT_ONCE)


def stop_tokens(tokenizer: Tokenizer, stop: str) -> Tokens:
    """The ids of a text that is to end another.

    Raises:
        ValueError: a text that never comes, or that is no text.
    """
    try:
        tokens = frame(tokenizer).plain.encode(stop)
    except ValueError as error:
        raise ValueError(f"the text to stop at, {stop!r}, cannot come: {error}") from error
    if not len(tokens):
        raise ValueError(f"the text to stop at, {stop!r}, is empty; give one that can come")
    return tokens


def until(texts: Iterable[str], stops: Sequence[str], since: int) -> Iterator[str]:
    """The texts up to the end of the first stop that begins after so many characters.

    >>> list(until(["a.", "b", ".c", "d"], [".c", "d"], 2))
    ['a.', 'b', '.c']
    """
    come = ""
    for text in texts:
        before, come = len(come), come + text
        ends = [at + len(stop) for stop in stops if (at := come.find(stop, since)) >= 0]
        if ends:
            yield text[: min(ends) - before]
            return
        since = max(since, len(come) - max(map(len, stops), default=0))
        yield text


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
        tokenizer, prompt, pieces, stops = begin(command)
        texts = stream_text(tokenizer, itertools.chain([prompt], timed(pieces, noted)))
        show(until(texts, stops, len(tokenizer.decode(prompt))))
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


class Piece(NamedTuple):
    """So many tokens that came together."""

    tokens: int
    seconds: float


def timed(
    pieces: Iterable[Int[np.ndarray, " _"]], noted: list[Piece]
) -> Iterator[Int[np.ndarray, " _"]]:
    """The same pieces; how long each was waited for is noted."""
    start = time.perf_counter()
    for piece in pieces:
        noted.append(Piece(len(piece), time.perf_counter() - start))
        yield piece
        start = time.perf_counter()


def pace(noted: list[Piece]) -> str:
    """How long the first piece took, and the median speed of the others, where one compilation does not decide it.

    >>> pace([Piece(1, 1.9), Piece(16, 0.8), Piece(16, 0.01), Piece(16, 0.01)])
    '49 tokens, 1,600 tokens/s after the first, which took 1.9 s (compiling included)'
    """
    tokens = sum(piece.tokens for piece in noted)
    counted = f"{tokens:,} token{'s' if tokens > 1 else ''}"
    first = f"took {noted[0].seconds:.2g} s (compiling included)"
    if len(noted) < 4:
        return f"{counted}; the first {first}"
    speed = statistics.median(piece.tokens / piece.seconds for piece in noted[1:])
    return f"{counted}, {speed:,.0f} tokens/s after the first, which {first}"


if __name__ == "__main__":
    sys.exit(main())
