"""Faults that would hurt a user, each put into a copy of the code to see whether a test fails.

    python -m tests.mutations                        # the fast tier, which `python -m pytest` runs
    python -m tests.mutations --tier all             # every test
    python -m tests.mutations --only rotary-sign     # one fault

The tests nearest to a fault run first; the rest of the tier runs only if they all pass. The unchanged code runs before
the faults: where that fails, catching means nothing. With the fast tier all of it takes about a quarter of an hour.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TIERS = {"fast": [], "all": ["-m", ""]}
"""What each tier adds to `python -m pytest`."""
LIMIT = 3600
"""The most seconds of one run of the tests; a fault that makes them hang is caught too."""


class Mutation(NamedTuple):
    """One fault: in a file, a text that occurs there once becomes another."""

    name: str
    file: str
    near: str
    """the folder of tests to run first"""
    text: str
    becomes: str


# fmt: off
MUTATIONS = [
    # A window shows one token too many.
    Mutation("mask", "jaxformer/model/attention.py", "tests/model",
             "within = (distance < config.window)",
             "within = (distance <= config.window)"),
    # Scores are divided by another width's root.
    Mutation("score-scale", "jaxformer/config.py", "tests/model",
             "self.d_head**-0.5 if",
             "self.d_model**-0.5 if"),
    # Queries and keys turn the other way.
    Mutation("rotary-sign", "jaxformer/model/position.py", "tests/model",
             "[(a * cos - b * sin), (a * sin + b * cos)]",
             "[(a * cos + b * sin), (b * cos - a * sin)]"),
    # Epsilon is added to the root, not to the mean square.
    Mutation("norm-epsilon", "jaxformer/model/norm.py", "tests/model",
             "keepdims=True) + config.norm_epsilon)",
             "keepdims=True)) + config.norm_epsilon"),
    # A tied embedding learns nothing from its use as the unembedding.
    Mutation("tied-gradient", "jaxformer/model/transformer.py", "tests/model",
             "W_U = params.W_E.T if",
             "W_U = jax.lax.stop_gradient(params.W_E.T) if"),
    # The derivative has a mean where it needs a sum.
    Mutation("softmax-gradient", "jaxformer/model/attention.py", "tests/model",
             "(pattern * change).sum(axis=-1, keepdims=True)",
             "(pattern * change).mean(axis=-1, keepdims=True)"),
    # Narrow parameters give narrow logits.
    Mutation("logits-dtype", "jaxformer/model/transformer.py", "tests/model",
             "return soft_cap(add_bias(query(final, W_U), params.b_U), config.logit_soft_cap)",
             "return soft_cap(add_bias(query(final, W_U).astype(final.dtype), params.b_U), config.logit_soft_cap)"),
    # A new key is written over the one before it.
    Mutation("cache-index", "jaxformer/model/cache.py", "tests/decoding",
             "(old, new, start, axis=1))",
             "(old, new, start - 1, axis=1))"),
    # P=1 drops tokens where fewer already add up to 1 by rounding.
    Mutation("top-p-edge", "jaxformer/decoding/sampling.py", "tests/decoding",
             "jnp.where(p < 1, _largest",
             "jnp.where(p <= 1, _largest"),
    # Every token of a text is drawn with the same random numbers.
    Mutation("sampling-key", "jaxformer/decoding/loop.py", "tests/decoding",
             "(request.keys, state.drawn)",
             "(request.keys, state.drawn * 0)"),
    # Streaming forgets a character's first byte before its fourth comes.
    Mutation("tokenizer-offset", "jaxformer/text/tokenizer.py", "tests/text",
             "latest = latest[-LONGEST - held :]",
             "latest = latest[1 - LONGEST - held :]"),
    # A norm's bias is multiplied by the norm's weight.
    Mutation("weight-folding", "jaxformer/interp/fold.py", "tests/interp",
             'jnp.einsum("d,d...->...", norm.b, W)',
             'jnp.einsum("d,d...->...", norm.b * norm.w, W)'),
    # Each layer is patched with the value of the layer before it.
    Mutation("patch-index", "jaxformer/interp/engine/delta.py", "tests/interp",
             "own = jnp.asarray(stacked)[layer]",
             "own = jnp.asarray(stacked)[layer - 1]"),
    # Padding past the end of the corpus counts in the validation loss.
    Mutation("loss-shift", "train/data/batches.py", "tests/train",
             "real = reach[:, 1:] < len(tokens)",
             "real = reach[:, :-1] < len(tokens)"),
    # Gradient accumulation multiplies the gradient by the number of parts.
    Mutation("accumulated-mean", "train/step.py", "tests/train",
             "loss(params, config, part, options) / targets",
             "loss(params, config, part, options) / part.counted.sum()"),
    # Weight decay shrinks norms and biases too.
    Mutation("optimizer-mask", "train/optimizer.py", "tests/train",
             "lambda spec: bool(spec.reads)",
             "lambda spec: True"),
    # Every batch comes twice.
    Mutation("batch-key", "train/data/batches.py", "tests/train",
             "jax.random.randint(jax.random.fold_in(key, step),",
             "jax.random.randint(jax.random.fold_in(key, step // 2),"),
    # A resumed run forgets the metrics of the step it goes on from.
    Mutation("resume-step", "train/metrics.py", "tests/train",
             'if line["step"] <= step]',
             'if line["step"] < step]'),
    # A run resumes from the oldest checkpoint that is kept.
    Mutation("checkpoint-order", "train/checkpoints.py", "tests/train",
             "return self._read(steps[-1], like)",
             "return self._read(steps[0], like)"),
    # On a mesh with a tensor axis every device holds all neurons.
    Mutation("sharding-axis", "jaxformer/sharding.py", "tests/train",
             '"f": "tensor",\n    "v"',
             '"f": None,\n    "v"'),
    # Packed documents see each other.
    Mutation("documents", "jaxformer/model/attention.py", "tests/model",
             "mask &= same_document(positions)",
             "pass"),
    # The last token of a document is asked for the first of the next.
    Mutation("boundary", "jaxformer/likelihood.py", "tests",
             "return (segments[1:] == segments[:-1]) & (segments[1:] >= 0)",
             "return segments[1:] >= 0"),
    # The program of a function is kept, with the values that it closed over.
    Mutation("stale-edit", "jaxformer/interp/engine/delta.py", "tests/model",
             "return self.change.func is not of_function and all(numbers)",
             "return all(numbers)"),
    # An edit of a misspelt site does nothing, in silence.
    Mutation("silent-edit", "jaxformer/edits.py", "tests/model",
             "self.acted |= new is not value",
             "self.acted = True"),
    # An eager call compiles every time.
    Mutation("eager", "jaxformer/model/tap.py", "tests/model",
             "return partial(_shared(run, static, donate), edit)",
             "return _jit(partial(run, edit), static, donate)"),
]
# fmt: on


class Verdict(NamedTuple):
    """What the tests said of one copy."""

    failed: str | None
    """the first test that failed; None where all passed"""
    seconds: float


def mutated(mutation: Mutation, tree: Path) -> str:
    """The text of the mutated file.

    Raises:
        ValueError: the text to replace does not occur exactly once.
    """
    text = (tree / mutation.file).read_text(encoding="utf-8")
    if (times := text.count(mutation.text)) != 1:
        raise ValueError(
            f"{mutation.name}: {mutation.text!r} occurs {times} times in {mutation.file}"
        )
    return text.replace(mutation.text, mutation.becomes)


def copy(tree: Path, to: Path) -> None:
    """Copy the files that git tracks, or would track, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=tree, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (tree / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, to / name)
    subprocess.run(["git", "init", "-q"], cwd=to, check=True)  # a test asks git what is there
    subprocess.run(["git", "add", "-A"], cwd=to, check=True)


def run_tests(tree: Path, *arguments: str) -> Verdict:
    """Run the tests of a tree until the first one fails.

    Raises:
        RuntimeError: pytest could not run them.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", *arguments],
        cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(tree)}, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return Verdict(f"still running after {LIMIT} s", time.perf_counter() - start)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the workers of a pytest that hangs
            os.killpg(process.pid, signal.SIGKILL)
    seconds = time.perf_counter() - start
    failures = [line for line in out.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if process.returncode == 0:
        return Verdict(None, seconds)
    if process.returncode not in (1, 2) or not failures:
        raise RuntimeError(f"pytest ended with {process.returncode}:\n{out}")
    return Verdict(failures[0].partition(" ")[2].partition(" - ")[0], seconds)


def try_out(mutation: Mutation, tree: Path, tier: str) -> Verdict:
    """Run the tests of a tree with one fault in it, and put the file back afterwards."""
    path = tree / mutation.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutated(mutation, tree), encoding="utf-8")
    try:
        near = run_tests(tree, *TIERS[tier], mutation.near)
        if near.failed:
            return near
        rest = run_tests(tree, *TIERS[tier])
        return Verdict(rest.failed, near.seconds + rest.seconds)
    finally:
        path.write_text(whole, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per fault; the exit status: 0 all caught, 1 some missed, 2 the unchanged code fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [mutation.name for mutation in MUTATIONS]
    parser.add_argument("--tier", choices=TIERS, default="fast", help="which tests run")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME",
        help=f"which faults: {', '.join(names)}",
    )  # fmt: skip
    parser.add_argument(
        "--unchecked", action="store_true", help="do not run the unchanged code first"
    )
    options = parser.parse_args(arguments)
    chosen = [mutation for mutation in MUTATIONS if mutation.name in options.only]
    for mutation in chosen:
        mutated(mutation, ROOT)  # all of them can be made
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy(ROOT, tree)
        if not options.unchecked:
            verdict = run_tests(tree, *TIERS[options.tier])
            if verdict.failed:
                print(f"the unchanged code fails {verdict.failed}; fix that first")
                return 2
            print(f"{'unchanged':<18} passes {verdict.seconds:6.0f} s", flush=True)
        missed = [
            mutation.name for mutation in chosen if not is_caught(mutation, tree, options.tier)
        ]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught by the {options.tier} tier")
    return int(bool(missed))


def is_caught(mutation: Mutation, tree: Path, tier: str) -> bool:
    """Whether the tests catch a fault; prints which test did."""
    verdict = try_out(mutation, tree, tier)
    word = "caught" if verdict.failed else "MISSED"
    print(
        f"{mutation.name:<18} {word} {verdict.seconds:6.0f} s  {verdict.failed or ''}", flush=True
    )
    return verdict.failed is not None


if __name__ == "__main__":
    sys.exit(main())
