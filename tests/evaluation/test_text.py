"""Overlap and length statistics, against values worked out by hand."""

import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadjax.evaluation.text import coverage, distinct_n, length_statistics, ngram_f1, rouge_l

TEXTS = st.lists(st.sampled_from(["tea", "cup", "Tea!", "运", "?"]), max_size=7).map(" ".join)


def test_rouge_l_is_the_stemmed_f_measure():
    # Stems: the cat are run / the cat run. The longest common subsequence has 3 words: P 3/4, R 3/3.
    assert rouge_l(["The cats are running."], ["the cat runs"]) == pytest.approx(2 * 0.75 / 1.75)


def test_rouge_l_follows_order_and_averages_over_pairs():
    # Reversed, only one word is in order: 1/3. The second pair is equal: 1.
    assert rouge_l(["c b a", "x y"], ["a b c", "x y"]) == pytest.approx((1 / 3 + 1) / 2)


def test_rouge_l_needs_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert rouge_l(["generalizations"], ["generalization"]) == 1


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        # "the" is in the prediction three times, matched twice: clipped. 3 of 4 words, 3 of 5.
        (1, 2 * 3 / (4 + 5)),
        # Prediction: the-the, the-the, the-dog. Reference: the-dog, dog-and, and-the, the-cat.
        (2, 2 * 1 / (3 + 4)),
        (3, 0),
        # Only the reference has five words in a row.
        (5, 0),
    ],
)
def test_ngram_f1_clips_counts(n, expected):
    assert ngram_f1(["the the THE dog"], ["the dog, and the cat"], n) == pytest.approx(expected)


def test_ngram_f1_does_not_stem():
    assert ngram_f1(["running cats"], ["run cat"], 1) == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "n", "expected"),
    [
        ("Yes.", "yes", 2, 1),
        ("yes", "no", 2, 0),
        ("", "", 1, 1),
        ("", "a word", 1, 0),
        ("a word", "", 1, 0),
        ("好", "好", 1, 1),
        ("好", "不好", 1, 0),
    ],
)
def test_ngram_f1_of_texts_too_short_for_n(prediction, reference, n, expected):
    assert ngram_f1([prediction], [reference], n) == expected


@given(TEXTS, TEXTS, st.integers(1, 5))
def test_ngram_f1_is_symmetric_bounded_and_one_for_equal_texts(a, b, n):
    score = ngram_f1([a], [b], n)
    assert 0 <= score <= 1
    assert score == ngram_f1([b], [a], n)
    assert ngram_f1([a], [a], n) == 1


def test_length_statistics():
    assert length_statistics([10, 20, 30, 40]) == {"mean": 25, "p50": 25, "p95": pytest.approx(38.5)}
    assert length_statistics(np.array([7])) == {"mean": 7, "p50": 7, "p95": 7}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="2 predictions but 1"):
        ngram_f1(["a", "b"], ["a"], 1)
    with pytest.raises(ValueError, match="no pairs"):
        rouge_l([], [])
    with pytest.raises(ValueError, match="no lengths"):
        length_statistics([])
    with pytest.raises(ValueError, match="at least one word"):
        ngram_f1(["a"], ["a"], 0)


def test_import_is_light():
    heavy = "nltk scipy rouge_score absl torch tensorflow"
    code = f"import sys, gadjax.evaluation.text; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_coverage_by_hand():
    prompts = ["Tell of a shy dog.", "Tell of a big fox.", "Something else."]
    pattern = r"a (\w+) (\w+)\."
    assert coverage(prompts, ["The SHY dogs ran.", "A fox.", "Nothing"], pattern) == 0.5
    assert coverage(prompts[2:], ["Nothing"], pattern) is None
    assert coverage(prompts[:1], ["A shy cat, a dog."], r"a (\w+)( cat)?") == 1.0, "a group that found nothing"


def test_distinct_n_by_hand():
    texts = ["the cat saw the cat", "The cat!"]
    assert distinct_n(texts, 1) == 3 / 7  # the, cat, saw
    assert distinct_n(texts, 2) == 3 / 5  # the cat (3 times), cat saw, saw the
    assert distinct_n(texts, 3) == 1.0
    assert distinct_n(["one", "…"], 2) == 0.0
    with pytest.raises(ValueError, match="n is 0"):
        distinct_n(texts, 0)


@settings(deadline=None)  # the first text imports nltk
@given(st.lists(st.text("ab ", max_size=12)), st.integers(1, 3))
def test_distinct_n_is_that_of_nltk(texts, n):
    util = pytest.importorskip("nltk.util")
    grams = [gram for text in texts for gram in util.ngrams(text.split(), n)]
    assert distinct_n(texts, n) == (len(set(grams)) / len(grams) if grams else 0.0)
