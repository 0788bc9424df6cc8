"""Settings of every test: strict dtype promotion, quick compilation, examples, and the cache of compiled programs."""

import contextlib
import os
import signal
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Tests compile thousands of tiny programs: LLVM's optimiser would cost more than it gains.
# And there are eight devices, as many as meshes in tests have; what is on no mesh runs on the first.
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
# With this flag jaxlib 0.10 compiles in a third of the time; jaxlib 0.12 refuses it.
if version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

# Compiled programs are kept between runs, small ones too: workers and the processes that tests start share them.
KEPT = ROOT / ".jax_cache"
MOST_BYTES = 2**30
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(KEPT))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import hypothesis
import jax
import pytest

# A shell that runs the tests in its background ignores Ctrl-C, and the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile(
    "nightly",
    deadline=None,  # the first example of a shape compiles
    max_examples=100,
    print_blob=True,  # a line that repeats what failed
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.register_profile(
    "few",
    parent=hypothesis.settings.get_profile("nightly"),
    derandomize=True,  # the same examples on every machine
    max_examples=10,
    phases=[  # each shrinking step would compile
        hypothesis.Phase.explicit,
        hypothesis.Phase.generate,
    ],
)
hypothesis.settings.load_profile("few")  # before pytest's --hypothesis-profile, which wins


collect_ignore = ["golden/make.py", "helpers/hf.py"]  # without torch nothing there can be imported


def pytest_configure(config: pytest.Config) -> None:
    """Remove the oldest compiled programs where `.jax_cache` holds more than `MOST_BYTES`."""
    if hasattr(config, "workerinput") or not KEPT.is_dir():
        return
    with contextlib.suppress(OSError):  # another run removes them at the same time
        files = sorted(KEPT.iterdir(), key=lambda file: file.stat().st_mtime)
        size = sum(file.stat().st_size for file in files)
        for file in files if size > MOST_BYTES else []:
            size -= file.stat().st_size
            file.unlink(missing_ok=True)
            if size < MOST_BYTES // 2:
                break


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remove the mark `slow` from the parameters that it names: `@pytest.mark.slow(unless=("seed",))`.

    Raises:
        pytest.UsageError: the test has no such parameters.
    """
    unseen: dict[str, set[str]] = {}
    for item in items:
        for mark in item.own_markers[:]:
            if mark.name == "slow" and (unless := mark.kwargs.get("unless")):
                test, _, own = item.nodeid.partition("[")
                unseen.setdefault(test, set(unless)).discard(own[:-1])
                if own[:-1] in unless:
                    item.own_markers.remove(mark)
    some = config.getoption("lf", default=False) or any("::" in given for given in config.args)
    if wrong := [f"{test}: {ids}" for test, ids in unseen.items() if ids and not some]:
        raise pytest.UsageError(f"no such parameters: {wrong}")


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Forget the programs of earlier files before 65,530 mappings are full: thousands of tests keep more.

    A user's process does not need this: repeated calls keep one program (tests/model/test_eager.py).
    """
    yield
    from tests.helpers.compilations import mappings

    if mappings() > 30_000:
        jax.clear_caches()


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
    from tests.helpers.runs import write_corpus

    return write_corpus(tmp_path)
