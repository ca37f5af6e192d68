"""What differs between layers, as constants or as arrays that are scanned."""

from __future__ import annotations

import numpy as np
import pytest

from gadjax.models.architecture import ModelConfig
from gadjax.models.layer_data import data_of_layers
from gadjax.models.rope import Rope

pytestmark = pytest.mark.quick

SIZES = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4)


def config(**fields) -> ModelConfig:
    return ModelConfig("LlamaForCausalLM", **SIZES, **fields)


def test_layers_that_are_alike_share_constants():
    for fields, window in (({}, None), ({"sliding_window": 6}, 6), ({"layer_ropes": (Rope(),) * 3}, None)):
        shared, own = data_of_layers(config(**fields), 7)
        assert own is None and shared.window == window
        assert isinstance(shared.rotary.frequencies, np.ndarray) and shared.rotary.factor is None
    assert data_of_layers(config(sliding_window=7), 7)[0].window is None  # so short a row reaches no further


def test_layers_that_differ_have_a_row_each():
    ropes = Rope(100.0), None, Rope(100.0, attention_factor=2.0)
    fields = {"layer_ropes": ropes, "sliding_window": 6, "layer_slides": (True, False, True)}
    shared, own = data_of_layers(config(**fields), 7)
    assert shared is None
    np.testing.assert_allclose(own.rotary.frequencies, [[1, 0.1], [0, 0], [1, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(own.rotary.factor, [1, 1, 2])
    np.testing.assert_array_equal(own.window, [6, 2**31 - 1, 6])
    assert data_of_layers(config(**fields), 6)[1].window is None
