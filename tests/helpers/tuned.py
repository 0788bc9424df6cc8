"""Small models with tokenizers, to go on from: their folders, a text of their letters, and the command line."""

from pathlib import Path

from jaxformer.pretrained.tokenizers import save_tokenizer
from jaxformer.text.subwords import Subwords, added_token, bpe, byte_level, template
from tests.helpers import ggufs
from tests.helpers.families import golden

LETTERS = ["<s>", "Ġ", *"thecasonmdr"]
MERGES = [("t", "h"), ("th", "e"), ("a", "t"), ("Ġ", "the")]
LINE = "the cat sat on the mat and the rat ate on a red hat and ran to the moon "
TEXT = (LINE * 30).strip()


def subwords(*, ends: bool = False) -> Subwords:
    """Seventeen tokens, fewer than the golden models have rows; BOS begins every text, and maybe ends it."""
    vocab = {token: i for i, token in enumerate([*LETTERS, *("".join(pair) for pair in MERGES)])}
    around = template([("<s>", 0)], [("<s>", 0)] if ends else [])
    pipeline = byte_level() | {"post_processor": around}
    return Subwords(bpe(vocab, MERGES, [added_token("<s>", 0)], **pipeline))


def foreign(folder: Path, case: str = "llama-plain", tokenizer: Subwords | None = None) -> Path:
    """A model of a golden family as its makers publish it, with a tokenizer."""
    golden(case).write(folder)
    save_tokenizer(folder, tokenizer or subwords())
    return folder


def quantised(path: Path, case: str = "llama-plain") -> Path:
    """The same as a GGUF file, which has no tokenizer."""
    ggufs.write(path, golden(case))
    return path


def text_at(folder: Path) -> Path:
    """The text's file."""
    path = folder / "text.txt"
    path.write_text(TEXT)
    return path


def tuning(start: Path | str, corpus: Path | str, room: Path, name: str, *extra: str) -> list[str]:
    """The command line of a short run from this model."""
    return [
        "seed", "--start", str(start), "--corpus", str(corpus), "--runs", str(room / "runs"), "--name", name,
        "--context", "12", "--batch", "4", "--chunk", "5", "--validate-every", "10", "--steps", "20",
        "--optimizer.warmup", "5", *extra,
    ]  # fmt: skip
