"""Settings of every test: strict dtype promotion, and one profile for hypothesis."""

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile(
    "jaxformer",
    deadline=None,  # the first example of a shape compiles
    derandomize=True,  # the same examples on every machine
    max_examples=40,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # each shrinking step would compile
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("jaxformer")


@pytest.fixture
def x64():
    """64-bit JAX for one test, where a law is exact."""
    with jax.enable_x64(True):
        yield
