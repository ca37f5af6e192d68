"""Scores of answers as text: lengths, distinct n-grams, overlap with the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gadjax.evaluation.candidates import Response
from gadjax.evaluation.results import Histogram, Lengths, Scores
from gadjax.evaluation.text import distinct_n, length_statistics, ngram_f1, rouge_l

TOKENS, WORDS = "tokens", "words"
_BINS = 20


def count_lengths(responses: Sequence[Response], tokenizer: Any, *, own: bool) -> list[int]:
    """Lengths of answers in one unit for all models: a tokenizer's ids, turn end included, or words without one.

    Args:
      tokenizer: that counts; None splits at white space.
      own: whether the answers' own `tokens` are of this tokenizer's vocabulary, and so are what was sampled.
    """
    if tokenizer is None:
        return [len(response.text.split()) for response in responses]
    if own:
        return [response.tokens for response in responses]
    texts, ended = [response.text for response in responses], [not response.cut for response in responses]
    return [len(ids) for ids in tokenizer.response_ids_batch(texts, ended)]


def length_figures(
    lengths: Mapping[str, Sequence[int]], responses: Mapping[str, Sequence[Response]]
) -> dict[str, Lengths]:
    """Statistics and histograms of each model's answers to a set; all have the same edges."""
    longest = max(max(of_model) for of_model in lengths.values())
    # Bins of whole numbers, the last of which holds the longest answer.
    width = max(1, -(-(longest + 1) // _BINS))
    edges = np.arange(0, width * (-(-(longest + 1) // width) + 1), width)
    found = {}
    for name, of_model in lengths.items():
        counts, _ = np.histogram(of_model, edges)
        truncated = float(np.mean([response.cut for response in responses[name]]))
        histogram = Histogram(edges.astype(float).tolist(), counts.tolist())
        found[name] = Lengths(**length_statistics(of_model), truncated=truncated, histogram=histogram)
    return found


def text_scores(
    responses: Sequence[Response], lengths: Lengths, pairs: tuple[Sequence[str], Sequence[str]] | None
) -> Scores:
    """What text alone tells of a model's answers.

    Args:
      responses: to all prompts of the set.
      lengths: of them.
      pairs: the model's and the teacher's texts, of the prompts that the teacher has answered; None without a teacher.
    """
    texts = [response.text for response in responses]
    return Scores(
        prompts=len(responses),
        lengths=lengths,
        distinct={str(n): distinct_n(texts, n) for n in range(1, 4)},
        rouge_l=rouge_l(*pairs) if pairs else None,
        ngram_f1={str(n): ngram_f1(*pairs, n) for n in range(1, 6)} if pairs else None,
    )
