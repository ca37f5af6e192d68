"""Two models on the same prompts: wins, ties, losses, and whether chance explains them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from gadjax.evaluation.results import Comparison

TEST = "exact two-sided sign test, without ties"


def sign_test(wins: int, losses: int) -> float:
    """The probability, were a win as likely as a loss, of a split at least as uneven: exact, two-sided, ties left out.

    Min(1, 2 P[X <= min(wins, losses)]) with X binomial of wins + losses and 1/2; 1 where there is neither.
    """
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


def compare(a: str, b: str, scores_a: Sequence[float], scores_b: Sequence[float]) -> Comparison:
    """Model `a` against `b` by their scores on the same prompts, in the same order.

    Raises:
      ValueError: they are not of the same number of prompts.
    """
    pairs = list(zip(scores_a, scores_b, strict=True))
    win, lose = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    return Comparison(a, b, win, len(pairs) - win - lose, lose, sign_test(win, lose), TEST)
