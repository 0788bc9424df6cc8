"""Settings of every test: strict dtype promotion, quick compilation, and one profile for hypothesis."""

import itertools
import os
import shutil
import tempfile
from pathlib import Path

# Tests compile thousands of tiny programs: LLVM's optimiser would cost more than it gains.
# And there are eight devices, as many as meshes in tests have; what is on no mesh runs on the first.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 "
    "--xla_force_host_platform_device_count=8"
).strip()

# The same program is compiled in many tests, workers and subprocesses: once is enough.
_run = os.environ.setdefault("JAXFORMER_TEST_RUN", str(os.getpid()))  # workers inherit the name
_room = Path(tempfile.gettempdir()) / f"jaxformer-tests-{_run}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_room)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile(
    "jaxformer",
    deadline=None,  # the first example of a shape compiles
    derandomize=True,  # the same examples on every machine
    max_examples=30,
    phases=[
        hypothesis.Phase.explicit,
        hypothesis.Phase.generate,
    ],  # each shrinking step would compile
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("jaxformer")


def pytest_unconfigure(config: pytest.Config) -> None:
    """The first process of a test run clears the run's compiled programs away."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(_room, ignore_errors=True)


_MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def _few_programs():
    """Forget programs before there are too many: each holds some of the 65,530 mappings that Linux grants a process.

    Past that, XLA crashes.
    """
    yield
    if next(_done) % 20 == 0 and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


_done = itertools.count(1)


@pytest.fixture
def x64():
    """64-bit JAX for one test, where a law is exact."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """Where optax computes: it multiplies floats by integer step counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def bench(monkeypatch, tmp_path, standard_promotion, capsys):
    """`python -m benchmarks`, quick."""
    from tests.helpers.benches import Bench

    return Bench(monkeypatch, tmp_path, capsys)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text to train on, in a folder of its own."""
    line = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
    path = tmp_path / "notes.txt"
    path.write_text(line * 40)
    return path
