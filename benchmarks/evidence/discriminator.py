"""A run's discriminator on held-out pairs: the teacher's answer against a fresh sample of the student."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.evidence import quality
from gadjax.data.bins import multiple_of, round_up
from gadjax.data.packing import one_per_row, padded
from gadjax.distill.forward import per_sequence, response_lengths, response_logprobs, sequence_scores, token_scores
from gadjax.models import layouts
from gadjax.models.model import Model, Params
from gadjax.models.weights import load_params, read_hf_config
from gadjax.parallel import mesh as meshes
from gadjax.workdir.checkpoints import Checkpoints
from gadjax.workdir.facts import network_model, read_workdir

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a discriminator judges: the token ids of prompts, of the teacher's answers, and of one sample to each."""

    prompts: Sequence[np.ndarray]
    teacher: Sequence[Sequence[int]]
    student: Sequence[Sequence[int]]


def scores_of_checkpoint(workdir: pathlib.Path, step: int, start: pathlib.Path, judged: Judged) -> dict[str, float]:
    """The accuracy, AUC and raw margin of the discriminator in a run's checkpoint; empty if there is none.

    A likelihood discriminator's score is beta * [log D(y) - log of the baseline that the config names], at temperature
    1: the policy that entered the run, or that of the same checkpoint.

    Args:
      workdir: the run's.
      step: of the checkpoint.
      start: the folder of the student that the run started from.
      judged: the pairs.
    """
    config, facts = read_workdir(workdir)
    mesh = meshes.make_mesh(data=1, fsdp=-1, tensor=1)
    if "discriminator" not in facts["hf_configs"]:
        return {}
    model = _computing(network_model(config, facts, "discriminator"), mesh)
    with contextlib.closing(Checkpoints.of(workdir, config)) as checkpoints:
        params = checkpoints.params(step, "discriminator", layouts.abstract_params(model, mesh))
        if params is None:
            return {}
        policy_model = _computing(network_model(config, facts, "generator"), mesh)
        if model.head == "lm" and config["discriminator"]["baseline"] == "policy":
            base = checkpoints.params(step, "generator", layouts.abstract_params(policy_model, mesh))
        elif model.head == "lm":
            base = load_params(start, read_hf_config(start)[0], layouts.abstract_params(policy_model, mesh))
    sides = []
    for responses in (judged.teacher, judged.student):
        scores = _scores(model, params, judged.prompts, responses, config)
        if model.head == "lm":
            own = _scores(policy_model, base, judged.prompts, responses, config)
            scores = config["discriminator"]["beta"] * (scores - own)
        sides.append(scores)
    return quality.pair_figures(*sides)


def _scores(
    model: Model, params: Params, prompts: Sequence[Any], responses: Sequence[Any], config: dict[str, Any]
) -> np.ndarray:
    """A score head's scores, or a language model's log-likelihoods in nats: [responses]."""
    program = _program(model, config["discriminator"]["pooling"])
    size = multiple_of(min(_BATCH, len(prompts)), meshes.batch_shards(model.mesh))
    found = np.zeros(len(prompts))
    widths = [round_up(max(map(len, sequences)), 8) for sequences in (prompts, responses)]
    for first in range(0, len(prompts), size):
        chosen = np.arange(first, min(first + size, len(prompts)))
        filled = np.resize(chosen, size)  # whole batches: one shape
        fields: list[np.ndarray] = []
        for sequences, width in zip((prompts, responses), widths, strict=True):
            fields += padded([sequences[i] for i in filled], width)
        placed = meshes.place(tuple(fields), meshes.rows(model.mesh))
        found[chosen] = np.asarray(program(params, placed))[: len(chosen)]
    return found


@functools.lru_cache(maxsize=8)
def _program(model: Model, pooling: str) -> Any:
    def score(params, fields):
        rows = one_per_row(*fields)
        if model.head == "lm":
            return per_sequence(response_logprobs(model, params, rows, temperature=1.0, chunk=1024)[0], rows)
        if pooling == "mean":
            return per_sequence(token_scores(model, params, rows), rows) / response_lengths(rows)
        return sequence_scores(model, params, rows)

    return jax.jit(score, out_shardings=meshes.replicated(model.mesh))


def _computing(model: Model, mesh: jax.sharding.Mesh) -> Model:
    return Model(dataclasses.replace(model.config, dtype="float32"), model.head, mesh)
