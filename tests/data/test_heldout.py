"""Which prompts are held out: the same in every order and in every file, all answers to a prompt together."""

from __future__ import annotations

import numpy as np

from gadjax.data.heldout import lowest, rank


def chat(text):
    return [{"role": "user", "content": text}]


def test_ranks_are_even_and_depend_on_the_chat_alone():
    ranks = [rank(chat(f"What is {number}?")) for number in range(4000)]
    assert rank(chat("What is 7?")) == ranks[7]
    assert rank([{"content": "What is 7?", "role": "user"}]) == ranks[7]
    assert rank([{"role": "system", "content": "What is 7?"}]) != ranks[7]
    counts, _ = np.histogram(ranks, bins=10, range=(0, 1))
    assert abs(counts - 400).max() < 80  # four standard deviations


def test_the_lowest_of_different_ranks():
    assert lowest([0.5, 0.1, 0.1, 0.3], 2) == {0.1, 0.3}
    assert lowest([0.5], 0) == set()
