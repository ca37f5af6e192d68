"""Train states: plain trees of arrays, updated by pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from gadjax.models import layouts, lora
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as meshes


class TrainState(struct.PyTreeNode):
    """A network in training: float32 master weights, optimizer moments and counters."""

    params: Params  # the trained parameters; with adapters (`gadjax.models.lora`) only a part of the network
    opt_state: Any
    step: Any  # int32, all updates, skipped ones included
    skipped: Any  # int32, updates that were skipped because the gradient was not finite
    skipped_in_row: Any  # int32, skipped updates since the last good one


class GadState(struct.PyTreeNode):
    """The networks of GAD: those that are trained, the reference of the KL, and the frozen base of adapters."""

    generator: TrainState
    discriminator: TrainState | None = None
    reference: Params | None = None
    statistics: Any = None  # `gadjax.distill.rewards.Statistics` of the rewards so far; None where nothing reads them
    base: Params | None = None  # frozen, in the compute dtype, shared by all three; None where everything is trained


def state_shardings(model: Model, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
    """The shardings of a `TrainState`: moments have those of the trained parameters; counters are replicated."""
    replicated = meshes.replicated(mesh)
    return TrainState(
        params=lora.trained(layouts.param_shardings(model, mesh)),
        opt_state=layouts.optimizer_shardings(optimizer, model, mesh),
        step=replicated,
        skipped=replicated,
        skipped_in_row=replicated,
    )


LearningRate = float | Callable[[jax.Array], jax.Array]  # constant, or of the number of updates so far


def learning_rate(
    peak: float, schedule: Literal["constant", "linear", "cosine"], *, rise: int, updates: int
) -> LearningRate:
    """The learning rate of a stage's updates.

    Args:
      peak: the highest rate.
      schedule: how it falls after the rise: not at all, or to 0 after the last update.
      rise: updates at the start over which it rises linearly; the first has peak / (rise + 1).
      updates: all updates of the stage; of no effect on a constant rate.
    """
    if schedule == "constant" and not rise:
        return peak
    falls = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, updates - rise),
        "cosine": lambda: optax.cosine_decay_schedule(peak, updates - rise),
    }
    fall = falls[schedule]()
    if not rise:
        return fall
    return optax.join_schedules([optax.linear_schedule(peak / (rise + 1), peak, rise), fall], [rise])


def adamw(
    learning_rate: LearningRate, *, b1: float, b2: float, eps: float, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """AdamW after a clip of the gradient's global norm (`docs/algorithm.md`, section 3).

    A learning rate that changes is read at the `step` of the updated state. The optimizer keeps no count of its own, so
    that its state is the same with every schedule, and a run may continue with another one.
    """
    if callable(learning_rate):
        moments = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
        update = optax.chain(moments, optax.add_decayed_weights(weight_decay), _descend(learning_rate))
    else:
        update = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), update)


def _descend(rate: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the rate at `step`."""

    def update(updates: Params, state: Any, params: Params | None = None, *, step: jax.Array, **others: Any):
        del params, others
        factor = -rate(step)
        return jax.tree.map(lambda leaf: factor * leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def create(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state with zero moments and counters."""
    counters = (jnp.zeros((), jnp.int32) for _ in range(3))  # a donated state must not hold one array twice
    return TrainState(params, optimizer.init(params), *counters)


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, gradients: Params
) -> tuple[TrainState, jax.Array]:
    """The state after one update, and the gradient's global norm before clipping.

    Where the norm is not finite, parameters and moments stay as they are, and the update is counted as skipped.
    """
    norm = optax.global_norm(gradients)
    finite = jnp.isfinite(norm)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(gradients, state.opt_state, state.params, step=state.step)
    params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    skip = (~finite).astype(jnp.int32)
    state = TrainState(
        params=jax.tree.map(keep, params, state.params),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        step=state.step + 1,
        skipped=state.skipped + skip,
        skipped_in_row=(state.skipped_in_row + 1) * skip,
    )
    return state, norm
