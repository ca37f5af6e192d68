"""The best of several draws by an arm's discriminator: what the discriminator is worth without training on it.

Draws are at temperature 1, scored as `gadjax.generate --best_of` scores them: a likelihood discriminator by its own
log-likelihood minus that of the model that drew. The model that an arm starts from and the one at its end draw; both
times the discriminator is that of the end. The best of several answers has no likelihood of its own, and so no reverse
KL: a known teacher's log-likelihood of it is measured instead.
"""

from __future__ import annotations

import pathlib
from functools import partial

from benchmarks.evidence.measure import Bench, Figures, Memory, found, local_model, once
from benchmarks.evidence.runs import Arm
from gadjax.evaluation.best_of import BestOfModel
from gadjax.evaluation.cached_model import CachedModel
from gadjax.evaluation.local_models import LocalModel, inspect_discriminator
from gadjax.evaluation.model_sources import parse_source

ENDS = ("start", "end")  # of an arm


def measure_best_of(bench: Bench, arm: Arm, workdir: pathlib.Path, samples: int) -> Figures:
    """The figures of plain draws (`plain`) and of the best of `samples` (`best`), by end; {} without a discriminator.

    The figures of the best draws are kept in the run's folder, and read if they are there.

    Args:
      bench: measures.
      arm: whose run is finished.
      workdir: the run's.
      samples: draws from each prompt.
    """
    discriminator = _discriminator(workdir)
    if discriminator is None:
        return {}
    plain = [bench.measure_start(arm.start), bench.measure_arm(arm, workdir, max(arm.points))]
    figures: Figures = {"samples": samples}
    for end, source, of_plain in zip(ENDS, _sources(arm, workdir), plain, strict=True):
        key = bench.key_of(source, discriminator.identity, samples)
        chosen = once(key, _kept(workdir, end, samples), partial(_best, bench, source, discriminator, samples))
        figures[end] = {"plain": {name: _plain(of_plain, name) for name in chosen}, "best": chosen}
    return figures


def has_measured_best_of(bench: Bench, arm: Arm, workdir: pathlib.Path, samples: int) -> bool:
    """Whether `measure_best_of` has nothing left to do for a finished and measured arm."""
    discriminator = _discriminator(workdir)
    return discriminator is None or all(
        found(bench.key_of(source, discriminator.identity, samples), _kept(workdir, end, samples)) is not None
        for end, source in zip(ENDS, _sources(arm, workdir), strict=True)
    )


def _sources(arm: Arm, workdir: pathlib.Path) -> tuple[str, str]:
    """The models at both ends of an arm."""
    return str(arm.start), f"{workdir}@{arm.points[max(arm.points)]}"


def _kept(workdir: pathlib.Path, end: str, samples: int) -> pathlib.Path:
    return workdir / f"best-of-{samples}-{end}.json"


def _discriminator(workdir: pathlib.Path) -> LocalModel | None:
    """The discriminator that a run ended with, or None."""
    folder = workdir / "export" / "discriminator"
    if not folder.exists():
        return None
    return inspect_discriminator(parse_source("discriminator", str(folder)), dtype="float32")


def _best(bench: Bench, source: str, discriminator: LocalModel, samples: int) -> Figures:
    """The figures of the best draws of a model."""
    generator = CachedModel(local_model(source), bench.draws)  # type: ignore[arg-type]
    judge = CachedModel(discriminator, Memory())  # type: ignore[arg-type]
    model = BestOfModel(generator, judge, samples, temperature=1.0)
    prompts = model.prompts(bench.chats)
    figures = bench.of_draws(model.local.tokenizer, prompts, model.draw(prompts, bench.limit, 1.0))
    model.close()
    return figures


def _plain(figures: Figures, name: str) -> float | None:
    """A figure of the plain draws. A known teacher has scored them: log p = log q - (log q - log p)."""
    return -figures["entropy"] - figures["reverse_kl_token"] if name == "teacher_nats" else figures.get(name)
