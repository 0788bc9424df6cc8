"""Continue a text with a trained model, printed while it is generated: `python -m train.sample runs/seed`."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import tyro

from jaxformer.config import Config
from jaxformer.decoding.sampling import Sampling
from jaxformer.decoding.streaming import stream_tokens
from jaxformer.pretrained.loading import load
from jaxformer.text.subwords import Subwords
from jaxformer.text.tokenizer import Tokenizer, Tokens, stream_text
from train.data.encoding import frame, opening, sayable
from train.pace import Piece, pace, timed
from train.runs import find_model

CHUNK = 8
"""Tokens per compiled call: few enough to stream the text, enough that the calls cost little."""

AT_ONCE = 1_000_000
"""The largest context: memory is allocated for all of its keys and values."""


@dataclass(frozen=True)
class Command:
    """Continue a prompt with the best model of a run, or any other model, and print the text while it is generated.

    Standard output gets only the prompt and its continuation, standard error the speed.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """folder of a run or of a model (jaxformer or Hugging Face), a GGUF file, or a hub id such as org/name"""
    prompt: str | None = None
    """text to continue; None: the tokenizer's beginning-of-text token, or a new line where it has none"""
    n: int = 500
    """maximum number of tokens to generate"""
    temperature: float = 0.8
    """0: take the most likely token; 1: sample from the model's distribution"""
    top_k: int | None = None
    """keep the k most likely tokens"""
    top_p: float | None = None
    """keep the most likely tokens that together have at least this probability"""
    min_p: float | None = None
    """keep tokens with at least this fraction of the highest probability"""
    repetition_penalty: float | None = None
    """above 1: tokens that have occurred become less likely"""
    stop: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """stop after any of these texts; may be repeated"""
    seed: int = 0
    """random seed of the sampled tokens"""
    context: int | None = None
    """context length; when it is full, the model reads its latest half again. None: the sequence length of
    training, or the length of the position table; if neither is known, what fits into 1 GiB of keys and values"""


class Text(NamedTuple):
    """A text that is being generated."""

    tokenizer: Tokenizer
    prompt: Tokens
    """without the special tokens that the tokenizer puts before every text"""
    pieces: Iterator[Tokens]
    stops: tuple[str, ...]
    """stop texts to find in the characters, because the same text can be encoded as different subwords"""


def begin(command: Command) -> Text:
    """Read the model and the prompt, and begin to generate.

    Raises:
        ValueError: an ensemble's folder, a model without a tokenizer, or a wrong option.
        OSError: the model cannot be read.
    """
    place, trained = find_model(command.model)
    params, config, tokenizer = load(place)
    if tokenizer is None:
        raise ValueError(f"{place} has no tokenizer to read a prompt with; choose another model")
    prompt = opening(tokenizer, first_text(tokenizer) if command.prompt is None else command.prompt)
    context = fitting(config, trained) if command.context is None else command.context
    if (context or command.n) > AT_ONCE:
        what = f"n={command.n}" if context is None else f"context={context}"
        raise ValueError(f"{what} is too large; choose a --context of at most {AT_ONCE}")
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
    """Return the default prompt: "" where the tokenizer has a beginning-of-text token, otherwise a new line.

    Raises:
        ValueError: the tokenizer has neither.
    """
    if len(frame(tokenizer).before):
        return ""
    try:
        has_newline = len(tokenizer.encode("\n")) > 0
    except ValueError:
        has_newline = False
    if not has_newline:
        raise ValueError("the tokenizer of this model has no token for a new line; give a --prompt")
    return "\n"


def _key(seed: int) -> Any:
    try:
        return jax.random.key(seed)
    except OverflowError as error:
        raise ValueError(f"seed={seed} has more than 64 bits; choose a smaller seed") from error


def fitting(config: Config, context: int | None) -> int | None:
    """Return the context, limited to the length of the model's position table."""
    most = [rows for rows in (context, config.max_length) if rows is not None]
    return min(most, default=None)


def room(config: Config, itemsize: int) -> int:
    """Return how many tokens fit into 1 GiB of keys and values."""
    size = config.sizes
    row = 2 * size["l"] * size["k"] * size["h"] * itemsize
    return min(max(2**30 // max(row, 1), 1), AT_ONCE)


def stop_tokens(tokenizer: Tokenizer, stop: str) -> Tokens:
    """Return the tokens of a text to stop at.

    Raises:
        ValueError: an empty text, or one that the tokenizer cannot encode.
    """
    try:
        tokens = frame(tokenizer).plain.encode(stop)
    except ValueError as error:
        raise ValueError(f"--stop {stop!r} cannot occur: {error}") from error
    if not len(tokens):
        raise ValueError(f"--stop {stop!r} is empty; give a text that can occur")
    return tokens


def until(texts: Iterable[str], stops: Sequence[str], since: int) -> Iterator[str]:
    """Yield the texts up to the end of the first stop that begins at character `since` or later.

    >>> list(until(["a.", "b", ".c", "d"], [".c", "d"], 2))
    ['a.', 'b', '.c']
    """
    seen = ""
    for text in texts:
        before, seen = len(seen), seen + text
        ends = [at + len(stop) for stop in stops if (at := seen.find(stop, since)) >= 0]
        if ends:
            yield text[: min(ends) - before]
            return
        since = max(since, len(seen) - max(map(len, stops), default=0))
        yield text


def show(texts: Iterable[str]) -> None:
    """Print each text at once, and end the line even after an exception."""
    begun = False
    try:
        for text in texts:
            begun = True
            print(text, end="", flush=True)
    finally:
        if begun:
            print(flush=True)


def main(args: list[str] | None = None) -> int:
    """Run the command line; exit status 0: done, 1: an error, 130: stopped by Ctrl-C, 141: the pipe was closed."""
    command = tyro.cli(Command, prog="python -m train.sample", args=args)
    timings: list[Piece] = []
    try:
        tokenizer, prompt, pieces, stops = begin(command)
        texts = stream_text(tokenizer, itertools.chain([prompt], timed(pieces, timings)))
        show(until(texts, stops, len(tokenizer.decode(prompt))))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except jax.errors.JaxRuntimeError as error:
        why = str(error).partition("\n")[0]
        print(f"error: the device cannot run this; lower --context ({why})", file=sys.stderr)
        return 1
    except (ValueError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(pace(timings), file=sys.stderr)
    return 0


def _discard_output() -> None:
    """Discard unwritten output; otherwise Python reports the closed pipe again on exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


if __name__ == "__main__":
    sys.exit(main())
