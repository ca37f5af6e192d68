"""A student made of some of a teacher's layers."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from benchmarks.prune_layers import parse_layers, prune
from gadjax.data.tokenizer import load_tokenizer
from gadjax.errors import UserError
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model
from gadjax.models.save import save_pretrained
from gadjax.models.weights import load_params, named_leaves, read_hf_config

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_the_layers_that_were_kept(tmp_path, student, hf_config):
    fields = hf_config(num_hidden_layers=4, layer_types=["full_attention"] * 4)
    config = ModelConfig.from_hf(fields, "fields")
    params = Model(config).init(jax.random.key(0))
    save_pretrained(tmp_path / "whole", params, config, fields, kind="generator", tokenizer_dir=student)
    model = prune(str(tmp_path / "whole"), "0,2-3", tmp_path / "pruned")

    read, kept_fields = read_hf_config(tmp_path / "pruned")
    assert read == model.config and read.num_layers == 3
    assert kept_fields == json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert len(kept_fields["layer_types"]) == 3
    expected = {**params, "layers": jax.tree.map(lambda stacked: stacked[np.array([0, 2, 3])], params["layers"])}
    left = named_leaves(load_params(tmp_path / "pruned", read, model.abstract_params()))
    assert left.keys() == named_leaves(expected).keys()
    for name, leaf in named_leaves(expected).items():
        np.testing.assert_array_equal(left[name], leaf, err_msg=name)
    assert load_tokenizer(tmp_path / "pruned").fingerprint() == load_tokenizer(student).fingerprint()


@pytest.mark.parametrize("keep", ["", "a", "1,0", "2,2", "0-4", "3-1", "1-2-3"])
def test_layers_that_are_not_there(keep):
    with pytest.raises(UserError, match=r"--keep=.*: (write it as|name layers of 0 to 3)"):
        parse_layers(keep, 4)


def test_layers():
    assert parse_layers("0-2,5", 6) == [0, 1, 2, 5]
