"""One finished run per pytest process, for all tests that need a run."""

import contextlib
import io

import jax
import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """The run of `helpers.runs.options` without extra options: read it, or copy it with `helpers.runs.copied_run`."""
    from tests.helpers.runs import Finished, options, write_corpus
    from train.__main__ import main

    command = options(write_corpus(tmp_path_factory.mktemp("finished")), "whole")
    said = io.StringIO()
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(said):
        assert main(command) == 0
    return Finished(command, said.getvalue())
