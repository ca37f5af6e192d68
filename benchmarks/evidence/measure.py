"""Measures students on held-out prompts, against a teacher whose likelihoods are known where there is one.

q is the student at temperature 1, p the teacher. Divergences are those of `gadjax.evaluation.kl`; their per-response
figures come with standard errors over prompts (`_se`). All models draw with the same random numbers, so that
differences between arms are less noisy than the figures.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.evidence import quality
from benchmarks.evidence.discriminator import Judged, scores_of_checkpoint
from benchmarks.evidence.networks import Data
from benchmarks.evidence.runs import Arm, read_json, write_json
from benchmarks.evidence.text_teacher import TextTeacher
from gadjax.data.schema import read_rows
from gadjax.data.tokenizer import ChatTokenizer
from gadjax.distill.state import state_shardings
from gadjax.evaluation.cached_model import CachedModel, ResponseTokens
from gadjax.evaluation.kl import shared_eos
from gadjax.evaluation.local_models import LocalModel, inspect
from gadjax.evaluation.model_sources import parse_source
from gadjax.evaluation.result_cache import digest
from gadjax.evaluation.text import coverage, distinct_n
from gadjax.evaluation.two_sample import Classifier, adamw_for, two_sample_test
from gadjax.models.model import Model

_VERSION = 2  # of the figures: raised when one is added, so that points measured before are measured again
Figures = dict[str, Any]  # numbers by name; None where there is nothing to measure. `curve` is a list


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
      prompts: held-out prompts, from the first; 0 for all.
      samples: draws from each prompt at temperature 1.
      temperatures: of the curve of quality against diversity; the last is 1.
      folds, epochs, rate: of the two-sample test; 0 folds leave it out.
    """

    prompts: int = 0
    samples: int = 2
    temperatures: tuple[float, ...] = (0.3, 0.7, 1.0)
    folds: int = 2
    epochs: int = 3
    rate: float = 1e-3


class Memory(dict):
    """A cache of draws and values that lasts as long as the process: the figures themselves are kept on disk."""

    add = dict.update


class Bench:
    """Held-out prompts with the teacher's answers, and what models are measured with on them."""

    def __init__(
        self,
        data: Data,
        settings: Settings,
        base: pathlib.Path,
        teacher: pathlib.Path | None = None,
        text_teacher: TextTeacher | None = None,
    ):
        """
        Args:
          data: the held-out answers; cut ones are left out unless `data.keep_cut`.
          settings: how much is measured.
          base: the folder of a causal language model from which the two-sample test's classifiers start.
          teacher: the folder of a model with the students' tokenizer whose distribution at temperature 1 gave the
            answers, or None.
          text_teacher: a teacher with another tokenizer, or None.
        """
        rows = read_rows(data.heldout)
        usable = [i for i in range(len(rows)) if not rows.marked[i] and (data.keep_cut or not rows.cut[i])]
        chosen = usable[: settings.prompts or None]
        self.settings, self.base = settings, base
        self.chats = [rows.messages(i) for i in chosen]
        self.asked = [chat[-1]["content"] for chat in self.chats]
        self.answers, self.ended = [rows.answer(i) for i in chosen], [not rows.cut[i] for i in chosen]
        self.limit = data.limit
        self.draws = Memory()  # of models whose draws several arms need
        self.teacher, self.text_teacher = _model(str(teacher)) if teacher else None, text_teacher
        identities = [local_model(str(base)).identity, self.teacher and self.teacher.local.identity]
        identities.append(text_teacher and text_teacher.name)
        self.key = digest(_VERSION, dataclasses.asdict(settings), data.limit, self.chats, self.answers, identities)

    def measure_model(self, source: pathlib.Path, kept: pathlib.Path) -> Figures:
        """The figures of a model in a folder, kept in the file `kept` and read if they are there."""
        return once(self.key_of(str(source)), kept, lambda: self._measure(str(source))[0])

    def measure_arm(self, arm: Arm, workdir: pathlib.Path, updates: int) -> Figures:
        """The figures at one point of an arm's run; those of the start are shared by all arms.

        Before the last update the curve and the two-sample test are left out. The test takes longer than all other
        figures together.
        """
        step = arm.points[updates]
        if not step:
            return self.measure_start(arm.start)
        whole = updates == max(arm.points)

        def measured() -> Figures:
            figures, judged = self._measure(f"{workdir}@{step}", whole=whole)
            teacher = self.teacher and self.teacher.network
            return figures | scores_of_checkpoint(workdir, step, arm.start, judged, teacher)

        kept, figures = _kept_of_arm(workdir, updates), self._found_of_arm(arm, workdir, updates)
        return once(self._key_of_arm(arm, workdir, updates), kept, measured) if figures is None else figures

    def measure_start(self, start: pathlib.Path) -> Figures:
        """The figures of the student in a folder, from which arms start; kept beside it."""
        return self.measure_model(start, _kept_of_start(start))

    def has_measured_model(self, source: pathlib.Path, kept: pathlib.Path) -> bool:
        """Whether `measure_model` has nothing left to do."""
        return found(self.key_of(str(source)), kept) is not None

    def has_measured_start(self, start: pathlib.Path) -> bool:
        """Whether `measure_start` has nothing left to do."""
        return self.has_measured_model(start, _kept_of_start(start))

    def has_measured_arm(self, arm: Arm, workdir: pathlib.Path) -> bool:
        """Whether `measure_arm` has nothing left to do at any point of an arm's finished run."""
        return all(
            self._found_of_arm(arm, workdir, updates) is not None if step else self.has_measured_start(arm.start)
            for updates, step in arm.points.items()
        )

    def _key_of_arm(self, arm: Arm, workdir: pathlib.Path, updates: int) -> str:
        on_the_way = [] if updates == max(arm.points) else ["on the way"]
        return self.key_of(f"{workdir}@{arm.points[updates]}", *on_the_way)

    def _found_of_arm(self, arm: Arm, workdir: pathlib.Path, updates: int) -> Figures | None:
        """The figures that are kept of a point of an arm's run, or None."""
        kept = _kept_of_arm(workdir, updates)
        figures = found(self._key_of_arm(arm, workdir, updates), kept)
        # All figures serve on the way too: they were measured at every point once.
        return found(self.key_of(f"{workdir}@{arm.points[updates]}"), kept) if figures is None else figures

    def key_of(self, source: str, *more: Any) -> str:
        """What names the figures of a model with this bench; `more` is what else they depend on."""
        return digest(self.key, local_model(source).identity, *more)

    def of_answers(self) -> Figures:
        """The figures of the teacher's own answers."""
        return {
            "coverage": coverage(self.asked, self.answers, quality.NAMED),
            "length_ratio": 1.0,
            **_distinct(self.answers),
        }

    def _measure(self, source: str, *, whole: bool = True) -> tuple[Figures, Judged]:
        """The figures of a model, and what a discriminator judges; `whole`: with the curve and the two-sample test."""
        model, s = _model(source), self.settings
        tokenizer = model.local.tokenizer
        prompts, given = model.prompts(self.chats), self._given(tokenizer)
        # Several draws at temperature 1, and for the curve one at each of the others.
        ends = shared_eos(model.local, self.teacher.local) if self.teacher else model.local.eos_ids
        drawn = [model.draw(prompts, self.limit, 1.0, sample=i, eos_ids=ends) for i in range(s.samples)]
        texts = {1.0: _texts(tokenizer, drawn[0])}
        for temperature in s.temperatures:
            if whole and temperature not in texts:
                texts[temperature] = _texts(tokenizer, model.draw(prompts, self.limit, temperature, eos_ids=ends))
        lengths = np.array([[len(draw.tokens) for draw in draws] for draws in drawn])
        figures: Figures = {
            "coverage": coverage(self.asked, texts[1.0], quality.NAMED),
            **_distinct(texts[1.0]),
            "length_ratio": float(lengths.mean() / np.mean([len(ids) for ids in given])),
            "cut": float(np.mean([not draw.ended for draws in drawn for draw in draws])),
            **self._divergences(model, prompts, drawn, given),
        }
        if whole:
            figures["curve"] = [
                [t, coverage(self.asked, texts[t], quality.NAMED), distinct_n(texts[t], 2)] for t in s.temperatures
            ]
        if whole and s.folds:
            figures["two_sample"] = self._two_sample(prompts, given, drawn[0])
        model.close()
        return figures, Judged(prompts, given, *zip(*((draw.tokens, draw.ended) for draw in drawn[0]), strict=True))

    def of_draws(self, tokenizer: ChatTokenizer, prompts: list[np.ndarray], draws: Sequence[ResponseTokens]) -> Figures:
        """The figures of answers without likelihoods of their own, one to each prompt.

        `teacher_nats` is the log-likelihood that a teacher with known likelihoods gives to a token of theirs.
        """
        texts, given = _texts(tokenizer, draws), self._given(tokenizer)
        tokens = sum(len(draw.tokens) for draw in draws)
        figures: Figures = {
            "coverage": coverage(self.asked, texts, quality.NAMED),
            "distinct_2": distinct_n(texts, 2),
            "length_ratio": tokens / sum(map(len, given)),
        }
        if self.settings.folds:
            figures["two_sample"] = self._two_sample(prompts, given, draws)
        of_teacher = self._of_teacher(tokenizer, prompts, draws)
        return figures if of_teacher is None else figures | {"teacher_nats": float(of_teacher.sum() / tokens)}

    def _given(self, tokenizer: ChatTokenizer) -> list[tuple[int, ...]]:
        """The teacher's answers as token ids."""
        return [tuple(ids[: self.limit].tolist()) for ids in tokenizer.response_ids_batch(self.answers, self.ended)]

    def _of_teacher(
        self, tokenizer: ChatTokenizer, prompts: list[np.ndarray], draws: Sequence[ResponseTokens]
    ) -> np.ndarray | None:
        """The teacher's log-likelihoods of draws from all prompts, once or several times over; None without it."""
        times = len(draws) // len(prompts)
        if self.teacher:
            return self.teacher.log_likelihoods(prompts * times, [draw.tokens for draw in draws], 1.0)
        if self.text_teacher:
            texts, ended = _texts(tokenizer, draws), [draw.ended for draw in draws]
            return self.text_teacher.log_likelihoods(self.chats * times, texts, ended)
        return None

    def _divergences(self, model: CachedModel, prompts: list[np.ndarray], drawn: list, given: list) -> Figures:
        """Entropy, negative log-likelihood and, with an open teacher, both divergences."""
        draws = [draw for draws in drawn for draw in draws]
        responses, repeated = [draw.tokens for draw in draws], prompts * len(drawn)
        tokens, answer_tokens = sum(map(len, responses)), sum(map(len, given))
        own, of_answers = model.log_likelihoods(repeated, responses, 1.0), model.log_likelihoods(prompts, given, 1.0)
        figures: Figures = {"entropy": float(-own.sum() / tokens), "nll": float(-of_answers.sum() / answer_tokens)}
        of_teacher = self._of_teacher(model.local.tokenizer, prompts, draws)
        if of_teacher is None:
            return figures
        if self.teacher:
            answers_of_teacher = self.teacher.log_likelihoods(prompts, given, 1.0)
        else:
            answers_of_teacher = self.text_teacher.log_likelihoods(self.chats, self.answers, self.ended)
        reverse = (own - of_teacher).reshape(len(drawn), -1).mean(axis=0)
        forward = answers_of_teacher - of_answers
        return figures | {
            "reverse_kl_token": float(reverse.sum() * len(drawn) / tokens),
            "reverse_kl_response": float(reverse.mean()),
            "reverse_kl_response_se": _standard_error(reverse),
            "forward_kl_token": float(forward.sum() / answer_tokens),
            "forward_kl_response": float(forward.mean()),
            "forward_kl_response_se": _standard_error(forward),
        }

    def _two_sample(self, prompts, given, draws: Sequence[ResponseTokens]) -> float:
        """The accuracy of fresh classifiers, 0.5 where the two cannot be told apart."""
        classifier, params = self._classifier
        s = self.settings
        sides = [[np.array(ids, np.int32) for ids in side] for side in (given, [draw.tokens for draw in draws])]
        return two_sample_test(classifier, params, prompts, *sides, folds=s.folds, epochs=s.epochs).accuracy

    @functools.cached_property
    def _classifier(self):
        loaded = local_model(str(self.base)).load(training=True)
        remat = "none" if jax.default_backend() == "cpu" else "full"
        model = Model(dataclasses.replace(loaded.model.config, remat=remat), "score", loaded.mesh)
        optimizer = adamw_for(self.settings.rate)
        return Classifier(model, optimizer, state_shardings(model, optimizer, loaded.mesh)), loaded.params


def once(key: str, kept: pathlib.Path, measured: Callable[[], Figures]) -> Figures:
    """The figures that a file has under a key; else what `measured` returns, which the file then has."""
    figures = found(key, kept)
    if figures is None:
        figures = measured()
        write_json(kept, {"key": key, "figures": figures})
    return figures


def found(key: str, kept: pathlib.Path) -> Figures | None:
    """The figures that a file has under a key, or None."""
    content = read_json(kept)
    return content["figures"] if content is not None and content["key"] == key else None


def _kept_of_start(start: pathlib.Path) -> pathlib.Path:
    return start.with_name(f"{start.name}-measured.json")


def _kept_of_arm(workdir: pathlib.Path, updates: int) -> pathlib.Path:
    return workdir / f"measured-{updates}.json"


def local_model(source: str) -> LocalModel:
    """The model of a folder or of WORKDIR@STEP, in float32 on every platform: bfloat16 would blur divergences."""
    return inspect(parse_source("model", source), dtype="float32")


def _model(source: str) -> CachedModel:
    return CachedModel(local_model(source), Memory())  # type: ignore[arg-type]


def _texts(tokenizer: ChatTokenizer, draws: Sequence[ResponseTokens]) -> list[str]:
    return [tokenizer.decode(draw.tokens) for draw in draws]


def _distinct(texts: Sequence[str]) -> dict[str, float]:
    return {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)}


def _standard_error(values: np.ndarray) -> float:
    """Of the mean over prompts."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
