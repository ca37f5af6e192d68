"""Scores of answers as text: overlap with the teacher's, distinct n-grams, statistics of lengths.

Overlap is a diagnostic of training only: SeqKD optimises for overlap, scores higher on it than GAD and is worse
(`docs/algorithm.md`, section 6).

A word is a maximal run of a-z and 0-9 in the lower-cased text, as in Google's ROUGE. Text in other scripts
has no words and so no overlap.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gadjax.evaluation.results import Histogram, Lengths, Scores

_BINS = 20


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure over pairs, from 0 to 1; words are stemmed. ValueError without pairs.

    The time grows with the product of a pair's lengths: two texts of 1,000 words take about half a second.
    """
    from rouge_score import rouge_scorer  # imports nltk and scipy, which takes seconds

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return _mean(
        scorer.score(reference, prediction)["rougeL"].fmeasure
        for prediction, reference in _pairs(predictions, references)
    )


def ngram_f1(predictions: Sequence[str], references: Sequence[str], n: int) -> float:
    """Mean F1 of n-gram overlap over pairs, from 0 to 1; words are not stemmed.

    Counts are clipped: an n-gram matches as often as it occurs in both texts. If neither text of a pair has n words,
    the pair counts as 1 if their words are equal, else as 0, so that equal texts score 1 at every n. Texts without any
    words are compared as they stand.

    Raises:
      ValueError: no pairs, lists of different lengths, or n below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least one word")
    return _mean(_pair_f1(prediction, reference, n) for prediction, reference in _pairs(predictions, references))


def length_statistics(lengths: Sequence[int] | np.ndarray) -> dict[str, float]:
    """`mean`, `p50` and `p95` of lengths; quantiles are interpolated. ValueError without lengths."""
    lengths = np.asarray(lengths, np.float64)
    if not lengths.size:
        raise ValueError("no lengths to take statistics of")
    p50, p95 = np.quantile(lengths, [0.5, 0.95])
    return {"mean": float(lengths.mean()), "p50": float(p50), "p95": float(p95)}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The share of distinct n-grams among those of all texts (Li et al., arXiv 1510.03055); 0 if there are none.

    It falls as texts grow longer or more numerous: compare answers to equal prompts only.

    Raises:
      ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least one word")
    grams = collections.Counter(gram for text in texts for gram in _ngrams(_words(text), n))
    return len(grams) / grams.total() if grams else 0.0


def coverage(prompts: Sequence[str], answers: Sequence[str], pattern: str) -> float | None:
    """The share of answers that name all words that `pattern` finds in their prompts; None if it finds none anywhere.

    A word counts within another one too ("dogs" names the dog), whatever its case.

    Args:
      prompts: as text.
      answers: one to each prompt.
      pattern: a regular expression, whose groups are the words.
    """
    found = [re.search(pattern, prompt) for prompt in prompts]
    named = [
        all(word.lower() in answer.lower() for word in match.groups() if word)
        for match, answer in zip(found, answers, strict=True)
        if match
    ]
    return sum(named) / len(named) if named else None


def length_figures(lengths: Mapping[str, Sequence[int]], cut: Mapping[str, Sequence[bool]]) -> dict[str, Lengths]:
    """Statistics and histograms of a set's answers by model; the histograms have the same edges.

    Args:
      lengths: of each answer, by model.
      cut: whether the limit cut the answer, by model.
    """
    longest = max(max(of_model) for of_model in lengths.values())
    # Edges are whole numbers, and the last bin holds the longest answer.
    width = max(1, -(-(longest + 1) // _BINS))
    edges = np.arange(0, width * (-(-(longest + 1) // width) + 1), width)
    found = {}
    for name, of_model in lengths.items():
        counts, _ = np.histogram(of_model, edges)
        histogram = Histogram(edges.astype(float).tolist(), counts.tolist())
        found[name] = Lengths(**length_statistics(of_model), truncated=float(np.mean(cut[name])), histogram=histogram)
    return found


def text_scores(texts: Sequence[str], lengths: Lengths, pairs: tuple[Sequence[str], Sequence[str]] | None) -> Scores:
    """The scores of a model's answers that follow from their text.

    Args:
      texts: answers to all prompts of the set.
      lengths: statistics of their lengths.
      pairs: the model's and the teacher's texts, for the prompts that the teacher answered; None without a teacher.
    """
    return Scores(
        prompts=len(texts),
        lengths=lengths,
        distinct={str(n): distinct_n(texts, n) for n in range(1, 4)},
        rouge_l=rouge_l(*pairs) if pairs else None,
        ngram_f1={str(n): ngram_f1(*pairs, n) for n in range(1, 6)} if pairs else None,
        judge=None,
        two_sample=None,
        kl=None,
    )


def _pair_f1(prediction: str, reference: str, n: int) -> float:
    words, reference_words = _words(prediction), _words(reference)
    grams, reference_grams = (collections.Counter(_ngrams(w, n)) for w in (words, reference_words))
    if grams or reference_grams:
        return 2 * (grams & reference_grams).total() / (grams.total() + reference_grams.total())
    if words or reference_words:
        return float(words == reference_words)
    return float(prediction.strip() == reference.strip())


def _words(text: str) -> list[str]:
    from rouge_score import tokenize

    return tokenize.tokenize(text, stemmer=None)


def _ngrams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(itertools.islice(words, start, None) for start in range(n)), strict=False)


def _pairs(predictions: Sequence[str], references: Sequence[str]) -> Iterable[tuple[str, str]]:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references")
    return zip(predictions, references, strict=True)


def _mean(scores: Iterable[float]) -> float:
    scores = list(scores)
    if not scores:
        raise ValueError("no pairs of texts to compare")
    return float(np.mean(scores))
