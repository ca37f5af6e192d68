"""Different weights have different fingerprints, with the same names and sizes too. test_weights has the rest."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from gadjax.errors import UserError
from gadjax.models.hf_files import weights_fingerprint


def write(path, seed, rows=4096):
    path.mkdir(exist_ok=True)
    table = np.random.default_rng(seed).normal(size=(rows, 64)).astype(np.float32)
    safetensors.numpy.save_file({"a": table, "b": table[0]}, path / "model.safetensors")
    return weights_fingerprint(path)


@pytest.mark.parametrize("rows", [1, 4096])
def test_other_weights(tmp_path, rows):
    first = write(tmp_path / "a", 0, rows)
    assert write(tmp_path / "b", 0, rows) == first
    assert write(tmp_path / "a", 1, rows) != first
    assert write(tmp_path / "a", 0, rows + 1) != first


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match="no weights"):
        weights_fingerprint(tmp_path)
