"""The two-sample test: can a fresh classifier, never used in training, tell the student's answers from the teacher's?

After Lopez-Paz and Oquab (arXiv 1610.06545). The classifier grows from the same base checkpoint whatever the model that
is tested, and its folds are split by prompt (decisions page, 10).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gadjax.data.bins import round_up
from gadjax.data.packing import Packed, one_per_row
from gadjax.distill.forward import sequence_scores
from gadjax.distill.state import TrainState, adamw, apply_gradients, create
from gadjax.models import lora
from gadjax.models.model import Model, Params, grow_discriminator
from gadjax.parallel.mesh import constrain


@dataclasses.dataclass(frozen=True)
class TwoSample:
    """Accuracy of the fresh classifiers on prompts that they did not see; 0.5 is indistinguishable.

    Attributes:
      accuracy: share of answers, half of them the teacher's, that were told right.
      low, high: 95 % bootstrap interval over prompts.
      prompts: how many prompts it was measured on.
    """

    accuracy: float
    low: float
    high: float
    prompts: int


def two_sample_test(
    model: Model,
    base: Params,
    prompts: Sequence[np.ndarray],
    teacher: Sequence[np.ndarray],
    student: Sequence[np.ndarray],
    *,
    folds: int,
    epochs: int,
    learning_rate: float,
    batch_size: int = 16,
    seed: int = 0,
) -> TwoSample:
    """Cross-validated: `folds` classifiers, each trained on the other folds' answers and tried on its own fold.

    Args:
      model: the "score" model of the base checkpoint's architecture.
      base: parameters of the base checkpoint, an "lm" model; each fold's classifier starts from its backbone, or with
        adapters in `model` stands on it.
      prompts, teacher, student: one token array a prompt; cut both sides at the same limit.
      folds: at least 2.
      epochs: passes over a fold's training answers.
      learning_rate: of AdamW.
      batch_size: prompts in an update; each brings its teacher's and its student's answer.
      seed: of folds, order, head and bootstrap.
    """
    if not 2 <= folds <= len(prompts):
        raise ValueError(f"{folds} folds of {len(prompts)} prompts: need at least 2 folds and a prompt in each")
    width = round_up(max(map(len, prompts)), 8)
    limit = round_up(max(max(map(len, teacher)), max(map(len, student))), 8)
    arrays = _pad(prompts, width), np.stack([_pad(teacher, limit), _pad(student, limit)], 1)
    lengths = _lengths(prompts), np.stack([_lengths(teacher), _lengths(student)], 1)
    optimizer = _optimizer(learning_rate)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(prompts))
    right = np.zeros((len(prompts), 2))
    for fold in range(folds):
        held = order[fold::folds]
        rest = np.setdiff1d(order, held)
        batches = max(1, len(rest) // batch_size)
        visits = [rng.permutation(rest)[: batches * batch_size] for _ in range(epochs)]
        visits = np.concatenate(visits).reshape(epochs * batches, -1)
        frozen, params = _start(model, base, jax.random.fold_in(jax.random.key(seed), fold))
        state = create(params, optimizer)
        for chosen in visits:
            state = _update(model, optimizer, state, frozen, _rows(arrays, lengths, chosen))
        for start in range(0, len(held), batch_size):
            chosen = held[start : start + batch_size]
            filled = np.resize(chosen, batch_size)
            params = lora.join(frozen, state.params)
            scores = np.asarray(_score(model, params, _rows(arrays, lengths, filled)))[: len(chosen)]
            right[chosen] = np.stack([scores[:, 0] > 0, scores[:, 1] <= 0], 1)
    means = right.mean(axis=1)
    resampled = means[rng.integers(len(means), size=(10_000, len(means)))].mean(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return TwoSample(float(means.mean()), float(low), float(high), len(prompts))


def _start(model: Model, base: Params, key: jax.Array) -> tuple[Params | None, Params]:
    """What a fresh classifier keeps as it is, and what it trains."""
    if model.config.lora:
        return base, jax.jit(lambda key: lora.trained(model.init(key)))(key)
    return None, grow_discriminator(base, model.init_head(key))


@functools.cache
def _optimizer(learning_rate: float) -> optax.GradientTransformation:
    """The same object every time, so that `_update` compiles once in a run."""
    return adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _update(model: Model, optimizer, state: TrainState, frozen: Params | None, rows: Packed) -> TrainState:
    def loss(params):
        scores = sequence_scores(model, lora.join(frozen, params), rows).reshape(-1, 2)
        return -jnp.mean(jax.nn.log_sigmoid(scores * jnp.array([1.0, -1.0])))

    return apply_gradients(optimizer, state, jax.grad(loss)(state.params))[0]


@functools.partial(jax.jit, static_argnums=0)
def _score(model: Model, params: Params, rows: Packed) -> jax.Array:
    scores = sequence_scores(model, params, rows).reshape(-1, 2)
    return constrain(scores, model.mesh, None, None)  # whole on every device: every process reads all


def _rows(arrays, lengths, chosen: np.ndarray) -> Packed:
    (prompts, answers), (prompt_length, answer_length) = arrays, lengths
    return one_per_row(
        np.repeat(prompts[chosen], 2, axis=0),
        np.repeat(prompt_length[chosen], 2),
        answers[chosen].reshape(-1, answers.shape[-1]),
        answer_length[chosen].reshape(-1),
    )


def _pad(arrays: Sequence[np.ndarray], width: int) -> np.ndarray:
    padded = np.zeros((len(arrays), width), np.int32)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _lengths(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([len(array) for array in arrays], np.int32)
