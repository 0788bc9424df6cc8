"""Texts from a model: what `forward` alone says, and from a run's folder."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import Characters, Words, forward, init, save
from tests.models import NAMED, SEED
from tests.runs import options
from train import sample
from train.__main__ import main
from train.sample import continue_text

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("name", ["seed", "classic"])
def test_greedy_text_is_what_forward_alone_says(name: str):
    config = NAMED[name]
    params = init(config, jax.random.key(5))
    tokenizer = Characters("abcdefghijk")
    text = continue_text(
        params, config, tokenizer, "abcde", 5, jax.random.key(0), temperature=0.0, window=6
    )
    tokens = list(tokenizer.encode("abcde"))
    for _ in range(5):
        logits = forward(params, config, jax.numpy.asarray(np.array(tokens[-6:]))).logits
        tokens.append(int(logits[-1].argmax()))
    assert tokenizer.decode(np.array(tokens[5:])) == text


def test_the_same_key_gives_the_same_text_and_another_another():
    params, tokenizer = init(SEED, jax.random.key(5)), Characters("abcdefghijk")

    def draw(seed: int) -> str:
        key = jax.random.key(seed)
        return continue_text(params, SEED, tokenizer, "a", 40, key, temperature=1.0, window=6)

    assert draw(0) == draw(0) != draw(1)


def test_sampled_tokens_follow_the_model_s_distribution():
    params = init(SEED, jax.random.key(5))
    probabilities = jax.nn.softmax(forward(params, SEED, jax.numpy.array([3])).logits[0] / 0.7)
    n = 1500
    draws = jax.vmap(
        lambda key: sample._draw(
            params,
            SEED,
            jax.numpy.array([3, 0, 0]),
            jax.numpy.array(1),
            key,
            jax.numpy.float32(0.7),
            n=1,
        )[0]
    )(jax.random.split(jax.random.key(0), n))
    expected = n * np.asarray(probabilities)
    chi_square = (np.square(np.bincount(draws, minlength=11) - expected) / expected).sum()
    assert chi_square < 29.6  # 1 in 1000 for 10 degrees of freedom


def test_sample_continues_from_a_run(corpus: Path, capsys):
    assert main(options(corpus, "done", 10)) == 0
    capsys.readouterr()
    folder = str(corpus.parent / "runs" / "done")
    assert sample.main([folder, "--prompt", "To be", "--n", "20"]) == 0
    assert len(capsys.readouterr().out) == len("To be") + 20 + 1
    for extra, sentence in {
        ("--prompt", "Zebra"): "the character 'Z' at position 0 is not in the alphabet",
        ("--prompt", ""): "the prompt is empty",
        ("--n", "0"): "n=0 must be at least 1",
        ("--temperature", "-1"): "temperature=-1.0 must be 0 or a positive number",
    }.items():
        assert sample.main([folder, *extra]) == 1
        assert sentence in capsys.readouterr().err
    assert sample.main([folder + "-not"]) == 1
    assert "holds no model" in capsys.readouterr().err


def test_words_are_parted_from_the_prompt(tmp_path: Path, capsys):
    save(tmp_path / "model", SEED, init(SEED, jax.random.key(0)), Words(list("abcdefghijk")))
    assert sample.main([str(tmp_path / "model"), "--prompt", "a b", "--n", "3"]) == 0
    assert len(capsys.readouterr().out.split()) == 5


def test_an_ensemble_s_members_are_found_with_their_context(tmp_path: Path, capsys):
    (tmp_path / "run.json").write_text('{"corpus_sha256": "", "recipe": {"context": 9}}')
    (tmp_path / "models" / "0").mkdir(parents=True)
    assert sample.find_model(tmp_path / "models" / "0") == (tmp_path / "models" / "0", 9)
    assert sample.main([str(tmp_path)]) == 1
    assert "is an ensemble's; name one of its models" in capsys.readouterr().err
