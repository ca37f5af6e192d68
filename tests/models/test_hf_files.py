"""The files of a model's directory: what is refused, and fingerprints, which differ for weights of the same sizes."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from gadjax.errors import UserError
from gadjax.models.hf_files import pooling_of, weights_fingerprint
from tests.models.written_checkpoints import hf_tensors, load, write, write_sharded


def write_weights(path, seed, rows=4096):
    path.mkdir(exist_ok=True)
    table = np.random.default_rng(seed).normal(size=(rows, 64)).astype(np.float32)
    safetensors.numpy.save_file({"a": table, "b": table[0]}, path / "model.safetensors")
    return weights_fingerprint(path)


@pytest.mark.parametrize("rows", [1, 4096])
def test_other_weights(tmp_path, rows):
    first = write_weights(tmp_path / "a", 0, rows)
    assert write_weights(tmp_path / "b", 0, rows) == first
    assert write_weights(tmp_path / "a", 1, rows) != first
    assert write_weights(tmp_path / "a", 0, rows + 1) != first


def test_no_weights_have_no_fingerprint(tmp_path):
    with pytest.raises(UserError, match="no weights"):
        weights_fingerprint(tmp_path)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused(tmp_path, pickle):
    (write(tmp_path, hf_tensors()) / "model.safetensors").unlink()
    (tmp_path / pickle).write_bytes(b"")
    with pytest.raises(UserError, match=f"weights are pickled only .{pickle}."):
        load(tmp_path)


def test_no_weights(tmp_path):
    (write(tmp_path, hf_tensors()) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights; a checkpoint holds model.safetensors"):
        load(tmp_path)


def test_index_names_a_file_that_is_not_there(tmp_path):
    write_sharded(tmp_path, hf_tensors())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"index.json: names model-1.safetensors, which is not there"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "weight_map is missing or empty"),
        ('{"weight_map": {}}', "weight_map is missing or empty"),
        ('{"weight_map": ["a"]}', "weight_map is missing or empty"),
        ('{"weight_map": {"a": "model-0.safetensors", "b": 3}}', "weight_map has 3 for b, not a file's name"),
        ('{"weight_map": {"a": null}}', "weight_map has None for a, not a file's name"),
    ],
)
def test_index_without_a_map(tmp_path, content, message):
    write_sharded(tmp_path, hf_tensors())
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=rf"index.json: {message}"):
        load(tmp_path)


def test_an_unknown_pooling():
    with pytest.raises(UserError, match=r"^c\.json: gadjax_pooling is 'max'; expected 'last' or 'mean'"):
        pooling_of({"gadjax_pooling": "max"}, "c.json")
