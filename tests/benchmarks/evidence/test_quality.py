"""AUC, pair figures and paired intervals against loops and tables, and the words that the demo's prompts ask for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.evidence.quality import NAMED, auc, pair_figures, paired, token_figures
from gadjax.config.shipped import demo_assets
from gadjax.data.schema import read_rows
from gadjax.evaluation.text import coverage

pytestmark = pytest.mark.quick


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    above, below = rng.integers(0, 6, 40), rng.integers(0, 5, 30)  # with ties
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    assert auc(above, below) == pytest.approx(np.mean(pairs))
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1 and auc(np.zeros(3), np.zeros(2)) == 0.5


def test_pairs_are_of_one_prompt_and_the_auc_is_of_all():
    """Scores that the prompt shifts: every pair is right, though half of the answers of others score higher."""
    found = pair_figures(np.array([1.0, 101.0]), np.array([0.0, 100.0]))
    assert found == {"d_accuracy": 1.0, "d_auc": 0.75, "d_margin": 1.0}
    assert pair_figures(np.zeros(2), np.zeros(2))["d_accuracy"] == 0.5


def test_token_rewards_are_compared_with_the_true_ones():
    """A scale and a shift are no error. A lower reward at the token before the last one is a bias of the end."""
    rng = np.random.default_rng(1)
    true, ended = [rng.normal(size=length) for length in (5, 1, 8, 4)], [True, True, True, False]
    found = token_figures([3 * one + 2 for one in true], true, ended)
    assert found == {"d_token_correlation": pytest.approx(1), "d_end_bias": pytest.approx(0, abs=1e-9)}
    assert token_figures(true, true, [False] * 4)["d_end_bias"] is None
    equal = [np.ones_like(one) for one in true]
    assert token_figures(equal, true, ended) == {"d_token_correlation": None, "d_end_bias": None}
    lower = [one - 4 * (np.arange(len(one)) == len(one) - 2) for one in true]
    rewards, expected = np.concatenate(lower), np.concatenate(true)
    gaps = [
        (rewards[i] - rewards.mean()) / rewards.std() - (expected[i] - expected.mean()) / expected.std()
        for i in (3, 12)
    ]
    biased = token_figures(lower, true, ended)
    assert biased["d_end_bias"] == pytest.approx(np.mean(gaps)) and np.mean(gaps) < 0
    assert biased["d_token_correlation"] == pytest.approx(np.corrcoef(rewards, expected)[0, 1])


def test_a_paired_interval_is_students():
    arm, baseline = {0: 1.0, 1: 3.0, 2: 5.0, 9: 100.0}, {2: 4.0, 1: 1.0, 0: 0.0}
    found = paired(arm, baseline)  # differences 1, 2, 1: mean 4/3, standard deviation 1/sqrt(3)
    half = 4.302653 * math.sqrt(1 / 3) / math.sqrt(3)
    assert found.seeds == 3 and found.mean == pytest.approx(4 / 3)
    assert (found.low, found.high) == pytest.approx((4 / 3 - half, 4 / 3 + half), rel=1e-6)


def test_pairing_takes_out_what_seeds_have_in_common():
    baseline = {seed: 10.0 * seed for seed in range(4)}
    found = paired({seed: value + 1 for seed, value in baseline.items()}, baseline)
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))


def test_one_seed_has_no_interval_and_none_is_refused():
    found = paired({3: 1.5}, {3: 1.0})
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    with pytest.raises(ValueError, match="no common seed"):
        paired({0: 1.0}, {1: 1.0})


def test_an_answer_covers_adjective_animal_and_place():
    prompts = [
        "Write one short sentence about a brave fox at night.",
        "Write one short sentence about a shy owl on a hill.",
    ]
    assert coverage(prompts, ["The brave fox ran in the night.", "Shyly, the owl sat on its HILL."], NAMED) == 1
    assert coverage(prompts, ["The brave fox ran.", "The owl sat on a hill."], NAMED) == 0
    assert coverage(["What is one plus two"], ["three"], NAMED) is None


def test_the_demos_teacher_covers_two_thirds_of_its_prompts():
    rows = read_rows(demo_assets() / "heldout.parquet")
    whole = [i for i in range(len(rows)) if not rows.cut[i]]
    asked, answers = [rows.messages(i)[-1]["content"] for i in whole], [rows.answer(i) for i in whole]
    assert coverage(asked, answers, NAMED) == pytest.approx(0.64, abs=0.005)
