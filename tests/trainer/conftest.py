"""Fixtures for the tests of the trainer."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def add_weights(tmp_path_factory) -> Callable[[pathlib.Path], pathlib.Path]:
    """Puts weights of small values beside a config.json, those of a causal language model."""
    from gadjax.models.export import save_pretrained
    from gadjax.models.model import Model
    from gadjax.models.weights import read_hf_config

    def add(directory: pathlib.Path) -> pathlib.Path:
        config, hf_config = read_hf_config(directory)
        rng = np.random.default_rng(0)
        random = lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
        params = jax.tree.map(random, Model(config).abstract_params())
        exported = tmp_path_factory.mktemp("weights") / "export"
        save_pretrained(exported, params, config, hf_config, kind="generator")
        shutil.copy(exported / "model.safetensors", directory)
        return directory

    return add
