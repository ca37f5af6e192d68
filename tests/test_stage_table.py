"""The cells of the table of held-out figures by stage."""

from __future__ import annotations

import pytest

from gadjax.stage_table import HELDOUT_COLUMNS, heldout_cells, stage_title

pytestmark = pytest.mark.quick


def test_cells_of_all_figures():
    figures = {"nll": 2.6241, "rouge_l": 0.411, "length_mean": 23.27, "discriminator_accuracy": 0.375}
    figures |= {f"ngram_f1_{n}": n / 10 for n in range(1, 6)}
    figures |= {"two_sample": 0.477, "two_sample_low": 0.426, "two_sample_high": 0.528}
    assert heldout_cells(figures) == ["2.624", "0.411", "0.300", "23.3", "0.375", "0.477 ± 0.051"]


def test_cells_of_what_was_not_measured():
    assert heldout_cells({"nll": 1.0, "ngram_f1_1": 0.5}) == ["1.000", *["–"] * (len(HELDOUT_COLUMNS) - 1)]


def test_titles():
    assert [stage_title(stage) for stage in ("before", "seqkd", "warmup", "gad")] == [
        "before",
        "SeqKD",
        "warmup",
        "GAD",
    ]
