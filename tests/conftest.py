"""Strict settings for every test: two host devices, no silent broadcasting, warnings as errors."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = pathlib.Path(os.environ.get("RLVR_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """The folder of real data sets, which the repository does not carry."""
    if not DATA.is_dir():
        pytest.skip(f"no data folder at {DATA}; set RLVR_DATA")
    return DATA
