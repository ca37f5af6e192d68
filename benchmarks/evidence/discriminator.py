"""A run's discriminator on held-out pairs: the teacher's answer against a fresh sample of the student."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks.evidence import quality
from gadjax.evaluation.local_models import Loaded
from gadjax.evaluation.scoring import as_scores, sequence_values, token_nats
from gadjax.models import layouts
from gadjax.models.weights import load_params
from gadjax.parallel import mesh as meshes
from gadjax.workdir.checkpoints import Checkpoints
from gadjax.workdir.facts import network_model, read_workdir


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a discriminator judges: the token ids of prompts, of the teacher's answers, and of one sample to each.

    `ended` says which samples end with an EOS; the others were cut.
    """

    prompts: Sequence[np.ndarray]
    teacher: Sequence[Sequence[int]]
    student: Sequence[Sequence[int]]
    ended: Sequence[bool]


def scores_of_checkpoint(
    workdir: pathlib.Path, step: int, start: pathlib.Path, judged: Judged, teacher: Loaded | None = None
) -> dict[str, float | None]:
    """The accuracy, AUC and raw margin of the discriminator in a run's checkpoint; empty if there is none.

    Where it is a likelihood phi and the teacher p is at hand, also how far phi's token rewards log phi - log q agree
    with the true ones, log p - log q, on the samples (`quality.token_figures`). q is the checkpoint's policy.

    A likelihood discriminator's score is beta * [log D(y) - log of the baseline that the config names], at temperature
    1: the policy that entered the run, or that of the same checkpoint.

    Args:
      workdir: the run's.
      step: of the checkpoint.
      start: the folder of the student that the run started from.
      judged: the pairs.
      teacher: the teacher itself, if it reads the student's tokens.
    """
    config, facts = read_workdir(workdir)
    mesh, settings = meshes.make_mesh(data=1, fsdp=-1, tensor=1), config["discriminator"]
    model, policy = (
        dataclasses.replace(found, config=dataclasses.replace(found.config, dtype="float32"), mesh=mesh)
        for found in (network_model(config, facts, network) for network in ("discriminator", "generator"))
    )
    with contextlib.closing(Checkpoints.of(workdir, config)) as checkpoints:
        params = checkpoints.params(step, "discriminator", layouts.abstract_params(model, mesh))
        if params is None:
            return {}
        if model.head == "score":
            pooling = settings["pooling"]
            scores = (
                sequence_values(model, params, mesh, judged.prompts, answers, pooling=pooling)
                for answers in (judged.teacher, judged.student)
            )
            return quality.pair_figures(*scores)
        abstract = layouts.abstract_params(policy, mesh)
        current = checkpoints.params(step, "generator", abstract)
    compared = current if settings["baseline"] == "policy" else load_params(start, policy.config, abstract)

    def nats(network: Loaded, answers: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return token_nats(*network, judged.prompts, answers)

    phi, baseline = Loaded(model, params, mesh), Loaded(policy, compared, mesh)
    of_phi, of_baseline = ([nats(net, side) for side in (judged.teacher, judged.student)] for net in (phi, baseline))
    sums = ([np.array([tokens.sum() for tokens in side]) for side in sides] for sides in (of_phi, of_baseline))
    scores = (settings["beta"] * as_scores("lm", *both) for both in zip(*sums, strict=True))
    figures: dict[str, float | None] = {**quality.pair_figures(*scores)}
    if teacher is None:
        return figures
    drawn = of_baseline[1] if compared is current else nats(Loaded(policy, current, mesh), judged.student)
    rewards = (
        [of_token - q for of_token, q in zip(side, drawn, strict=True)]
        for side in (of_phi[1], nats(teacher, judged.student))
    )
    return figures | quality.token_figures(*rewards, judged.ended)
