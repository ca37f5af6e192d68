"""Figures of answers and of scores, as pure functions: AUC, and intervals between arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Finds in the demo's prompts the words that an answer should name: adjective, animal, and the place's last word.
NAMED = r"^Write one short sentence about an? (\w+) (\w+) (?:.* )?(\w+)\.$"


class Paired(NamedTuple):
    """The mean difference of two arms over the seeds that both have, and its 95 % interval (nan with one seed)."""

    mean: float
    low: float
    high: float
    seeds: int


def auc(above: np.ndarray, below: np.ndarray) -> float:
    """The probability that a random element of `above` exceeds one of `below`; ties count half.

    Args:
      above, below: scores, at least one each. Those of all prompts are compared with each other, so this is less than
        the accuracy over pairs where the prompt shifts the scores of both sides.
    """
    above, below = np.asarray(above, np.float64), np.sort(np.asarray(below, np.float64))
    less, up_to = (np.searchsorted(below, above, side=side) for side in ("left", "right"))
    return float((less + up_to).mean() / (2 * len(below)))


def pair_figures(teacher: np.ndarray, student: np.ndarray) -> dict[str, float]:
    """`d_accuracy`, `d_auc` and `d_margin` of a discriminator from its scores of both answers to each prompt."""
    teacher, student = np.asarray(teacher, np.float64), np.asarray(student, np.float64)
    right = (teacher > student).mean() + (teacher == student).mean() / 2
    return {"d_accuracy": float(right), "d_auc": auc(teacher, student), "d_margin": float((teacher - student).mean())}


def token_figures(
    rewards: Sequence[np.ndarray], true: Sequence[np.ndarray], ended: Sequence[bool]
) -> dict[str, float | None]:
    """How far token rewards are right: `d_token_correlation`, and `d_end_bias`.

    Args:
      rewards: of each token of some answers, by a discriminator.
      true: the same by the teacher itself.
      ended: whether the last token of an answer is its EOS.

    Returns:
      The correlation of the two over all tokens. And the mean difference of the two at the token before the EOS, which
      decides that the answer ends here; both are standardised over all tokens first. Below 0, the discriminator drives
      towards longer answers than the teacher would. It is None where no answer ended, and both are where all rewards of
      one side are equal.
    """
    found, expected = (np.concatenate([np.asarray(one, np.float64) for one in both]) for both in (rewards, true))
    if found.std() == 0 or expected.std() == 0:
        return {"d_token_correlation": None, "d_end_bias": None}
    found, expected = ((values - values.mean()) / values.std() for values in (found, expected))
    ends = np.cumsum([len(one) for one in rewards])
    before = ends[[end and len(one) > 1 for one, end in zip(rewards, ended, strict=True)]] - 2
    gap = float((found - expected)[before].mean()) if len(before) else None
    return {"d_token_correlation": float((found * expected).mean()), "d_end_bias": gap}


def paired(arm: Mapping[int, float], baseline: Mapping[int, float]) -> Paired:
    """The difference arm - baseline, paired by seed, with Student's t interval over seeds.

    Args:
      arm, baseline: a figure by seed; seeds that only one of them has are left out.

    Raises:
      ValueError: they have no seed in common.
    """
    from scipy.stats import t  # takes half a second

    seeds = sorted(arm.keys() & baseline.keys())
    if not seeds:
        raise ValueError(f"no common seed: {sorted(arm)} and {sorted(baseline)}")
    gaps = np.array([arm[seed] - baseline[seed] for seed in seeds], np.float64)
    if len(gaps) < 2:
        return Paired(float(gaps[0]), math.nan, math.nan, 1)
    half = float(t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps)))
    return Paired(float(gaps.mean()), float(gaps.mean()) - half, float(gaps.mean()) + half, len(gaps))
