"""The cells of the table of held-out figures by stage."""

from __future__ import annotations

import pytest

from gadjax.stage_table import heldout_cells, heldout_columns, stage_title

pytestmark = pytest.mark.quick


def test_cells_of_all_figures():
    figures = {"nll": 2.6241, "rouge_l": 0.411, "length_mean": 23.27, "discriminator_accuracy": 0.375}
    figures |= {"coverage": 0.25, "sampled_distinct_2": 0.4561}
    figures |= {"two_sample": 0.477, "two_sample_low": 0.426, "two_sample_high": 0.528}
    cells = heldout_cells(figures, heldout_columns({"gad": figures}))
    assert cells == ["2.624", "0.411", "23.3", "0.250", "0.456", "0.375", "0.477 ± 0.051"]


def test_columns_are_those_that_a_stage_has():
    figures = {"before": {"nll": 1.0, "ngram_f1_1": 0.5}, "gad": {"nll": 0.9, "coverage": 0.5}}
    columns = heldout_columns(figures)
    assert [column.title for column in columns] == ["NLL", "coverage"]
    assert heldout_cells(figures["before"], columns) == ["1.000", "–"]


def test_titles():
    assert [stage_title(stage) for stage in ("before", "seqkd", "warmup", "gad")] == [
        "before",
        "SeqKD",
        "warmup",
        "GAD",
    ]
