"""Fixtures of the parity tests, which hold our numbers against transformers' and run only where it is installed."""

import os
from pathlib import Path

import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import gguf_file

from fixtures import read_jsonl


@pytest.fixture(scope="session")
def smollm2_path():
    pytest.importorskip("gguf", reason="pip install gguf")
    pytest.importorskip("accelerate", reason="pip install accelerate: transformers reads no GGUF without it")
    try:
        return gguf_file.smollm2_path()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    return gguf_file.load(smollm2_path)


@pytest.fixture(scope="session")
def qwen_path():
    pytest.importorskip("accelerate", reason="pip install accelerate: transformers reads no GGUF without it")
    path = Path(os.environ.get("RLVR_GGUF", "none"))
    if not path.is_file():
        pytest.skip("set RLVR_GGUF to a file of Qwen2.5-Coder-0.5B-Instruct such as q.gguf")
    return path


@pytest.fixture(scope="session")
def text_lines(data):
    """1,000 lines of real problems and solutions, spread evenly over the data folder."""
    rows = [row for path in sorted(data.glob("eval/*.jsonl")) for row in read_jsonl(path)]
    lines = [line for row in rows for value in row.values() if isinstance(value, str) for line in value.split("\n")]
    return lines[:: len(lines) // 1000][:1000]
