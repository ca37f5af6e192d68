"""The classifier two-sample test: can a fresh classifier tell the student's answers from the teacher's?

See Lopez-Paz and Oquab (arXiv 1610.06545). Classifiers of all tested models start from the same base checkpoint, and
folds are split by prompt (`docs/algorithm.md`, section 6).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gadjax.data.bins import round_up
from gadjax.data.packing import Packed, one_per_row, padded
from gadjax.data.pipeline import same_prompt
from gadjax.distill.forward import sequence_scores
from gadjax.distill.state import TrainState, adamw, apply_gradients, create
from gadjax.evaluation import statistics
from gadjax.evaluation.results import TwoSampleScore
from gadjax.models import lora
from gadjax.models.model import Model, Params, grow_discriminator
from gadjax.parallel.mesh import constrain

BATCH = 16  # prompts in an update


class Classifier:
    """The jitted programs of fresh classifiers."""

    def __init__(self, model: Model, optimizer: optax.GradientTransformation, shardings: TrainState | None = None):
        """
        Args:
          model: a "score" model of the base checkpoint's architecture.
          optimizer: as a rule `adamw_for(learning_rate)`.
          shardings: of the classifier's state; None leaves them to the compiler.
        """
        self.model, self.optimizer = model, optimizer
        self.start = jax.jit(self._start, out_shardings=shardings)
        self.update = jax.jit(self._update, donate_argnums=0, out_shardings=shardings)
        self.score = jax.jit(self._score)

    def frozen(self, base: Params) -> Params | None:
        """The parameters that a classifier with adapters does not train: the base. None without adapters."""
        return base if self.model.config.lora else None

    def _start(self, base: Params, key: jax.Array) -> TrainState:
        if self.model.config.lora:
            return create(lora.trained(self.model.init(key)), self.optimizer)
        return create(grow_discriminator(base, self.model.init_head(key)), self.optimizer)

    def _update(self, state: TrainState, frozen: Params | None, rows: Packed) -> TrainState:
        def loss(params):
            scores = sequence_scores(self.model, lora.join(frozen, params), rows).reshape(-1, 2)
            return -jnp.mean(jax.nn.log_sigmoid(scores * jnp.array([1.0, -1.0])))

        return apply_gradients(self.optimizer, state, jax.grad(loss)(state.params))[0]

    def _score(self, params: Params, frozen: Params | None, rows: Packed) -> jax.Array:
        scores = sequence_scores(self.model, lora.join(frozen, params), rows).reshape(-1, 2)
        return constrain(scores, self.model.mesh, None, None)  # replicated: every process reads all scores


def adamw_for(learning_rate: float) -> optax.GradientTransformation:
    """The optimizer of fresh classifiers."""
    return adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0)


def two_sample_test(
    classifier: Classifier,
    base: Params,
    prompts: Sequence[np.ndarray],
    teacher: Sequence[np.ndarray],
    student: Sequence[np.ndarray],
    *,
    folds: int,
    epochs: int,
    batch_size: int = BATCH,
    seed: int = 0,
) -> TwoSampleScore:
    """The cross-validated accuracy: each fold's classifier is trained on the other folds and tested on its own.

    Args:
      classifier: of the base checkpoint's architecture.
      base: parameters of the base checkpoint, an "lm" model. Each fold's classifier starts from its backbone, or
        trains adapters on it.
      prompts, teacher, student: token ids, one array a row; cut both sides at the same limit. Rows of equal prompts
        share a fold and a draw of the bootstrap, since a classifier that saw one has seen the other.
      folds: at least 2, and at most the number of different prompts.
      epochs: passes over a fold's training answers.
      batch_size: prompts in an update, each with the teacher's and the student's answer.
      seed: of folds, order, head and bootstrap.
    """
    groups = same_prompt(prompts)
    if not 2 <= folds <= len(groups):
        raise ValueError(f"{folds} folds of {len(groups)} prompts: need at least 2 folds and a prompt in each")
    # Pad all rows to one width, so that the programs compile once.
    width, limit = widths(max(map(len, prompts)), max(map(len, [*teacher, *student])))
    prompt, prompt_length = padded(prompts, width)
    sides = padded(teacher, limit), padded(student, limit)
    answers, answer_length = (np.stack(of_both, 1) for of_both in zip(*sides, strict=True))
    rows = functools.partial(_rows, (prompt, answers), (prompt_length, answer_length))
    rng = np.random.default_rng(seed)
    order = [groups[i] for i in rng.permutation(len(groups))]
    right = np.zeros((len(prompts), 2))
    for fold in range(folds):
        # Train a new classifier on whole batches of the other folds.
        held = np.concatenate(order[fold::folds])
        rest = np.setdiff1d(np.arange(len(prompts)), held)
        batches = max(1, len(rest) // batch_size)
        epoch_visits = [rng.permutation(rest)[: batches * batch_size] for _ in range(epochs)]
        visits = np.concatenate(epoch_visits).reshape(epochs * batches, -1)
        key = jax.random.fold_in(jax.random.key(seed), fold)
        params = _train(classifier, base, key, (rows(chosen) for chosen in visits))
        # Test it on this fold: a score above 0 says "the teacher's".
        for start in range(0, len(held), batch_size):
            chosen = held[start : start + batch_size]
            filled = rows(np.resize(chosen, batch_size))
            scores = np.asarray(classifier.score(params, classifier.frozen(base), filled))[: len(chosen)]
            right[chosen] = np.stack([scores[:, 0] > 0, scores[:, 1] <= 0], 1)
        del params  # frees memory for the next classifier
    # The interval resamples groups of equal prompts.
    shares = right.mean(axis=1)
    sums, counts = [shares[rows].sum() for rows in groups], [len(rows) for rows in groups]
    return TwoSampleScore(*statistics.ratio_of_means(np.array(sums), np.array(counts), seed=rng), len(groups))


def widths(prompt: int, answer: int) -> tuple[int, int]:
    """The padded widths of prompts and answers, given the tokens of the longest."""
    return round_up(prompt, 8), round_up(answer, 8)


def _train(classifier: Classifier, base: Params, key: jax.Array, updates: Iterable[Packed]) -> Params:
    """The parameters of a new classifier after an update with each of `updates`."""
    state = classifier.start(base, key)
    for rows in updates:
        state = classifier.update(state, classifier.frozen(base), rows)
    return state.params


def _rows(arrays, lengths, chosen: np.ndarray) -> Packed:
    (prompts, answers), (prompt_length, answer_length) = arrays, lengths
    return one_per_row(
        np.repeat(prompts[chosen], 2, axis=0),
        np.repeat(prompt_length[chosen], 2),
        answers[chosen].reshape(-1, answers.shape[-1]),
        answer_length[chosen].reshape(-1),
    )
