"""Random batches that both sides are given."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness.batches import Shape, make_batch


@pytest.mark.parametrize("ragged", [False, True])
def test_batch(ragged):
    shape = Shape(prompts=16, samples=4, prompt=24, response=40, vocabulary=50)
    batch, samples = make_batch(shape, ragged=ragged)
    for tokens, lengths, limit in (
        (batch["prompt"], batch["prompt_length"], 24),
        (batch["teacher"], batch["teacher_length"], 40),
        (samples["tokens"], samples["lengths"], 40),
    ):
        tokens, lengths = np.array(tokens), np.array(lengths)
        assert tokens.shape == (*lengths.shape, limit)
        assert ((tokens > 0) == (np.arange(limit) < lengths[..., None])).all()  # 0 is the padding, and nothing else
        assert tokens.max() < 50 and lengths.min() >= 1
        assert (len(np.unique(lengths)) > 1) == ragged
    if ragged:
        assert np.median(samples["lengths"]) == pytest.approx(40 / 4, rel=0.5)
    assert make_batch(shape, ragged=ragged) == (batch, samples)
