"""Figures on held-out prompts: the likelihood of the teacher's answers, and how the student's answers compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gadjax.data.packing import Packed, pack
from gadjax.distill.state import GadState
from gadjax.evaluation.results import TwoSampleScore
from gadjax.evaluation.text import coverage, distinct_n, length_statistics, ngram_f1, rouge_l
from gadjax.evaluation.two_sample import two_sample_test
from gadjax.models import lora
from gadjax.models.model import Params
from gadjax.rollout.engine import Completion, queue_width
from gadjax.setup.blueprint import Blueprint, decoding_weights
from gadjax.setup.prepare import Setup
from gadjax.trainer.programs import HeldOutPrograms, abstract_rows, place_rows


@dataclasses.dataclass(frozen=True)
class Answers:
    """The student's answers to the held-out prompts, and the teacher's."""

    rows: list[int]
    prompts: list[str]
    teacher: list[str]
    student: list[str]


class HeldOut:
    """Measures the networks of a run on the first `evaluation.prompts` held-out rows."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.examples = [setup.heldout[i] for i in range(setup.heldout_prompts)]
        self.prompts = [example["prompt"] for example in self.examples]
        self.teacher = [example["response"] for example in self.examples]
        self.programs = HeldOutPrograms(setup)
        self._texts = [setup.tokenizer.decode(ids) for ids in self.teacher]

    def compile_first(self, state: GadState) -> None:
        """Compiles the first measurement, which has no discriminator. `state`: abstract, of the first stage."""
        rows = rows_of_each(self.setup, self.prompts, [[ids] for ids in self.teacher], self.programs.parts["generator"])
        generator = lora.join(state.base, state.generator.params)
        self.programs.likelihoods.lower(generator, abstract_rows(self.setup.mesh, rows)).compile()
        engine = self.programs.engine
        size, slots = engine.queue_size(len(self.prompts))
        longest = sorted(map(len, self.prompts))[:size][-1]  # of the first queue, which has the shortest
        sampling = self.setup.sampling(self.setup.config.evaluation.temperature)
        weights, queue = decoding_weights(self.setup, state), engine.abstract_queue(size, queue_width(longest))
        engine.sample.lower(weights, *queue, sampling, slots, 1).compile()

    def figures(self, generator: Params, discriminator: Params | None = None) -> tuple[dict[str, float], Answers]:
        """The held-out figures, and the answers that they were measured on.

        Args:
          generator: whole parameters of the generator.
          discriminator: whole parameters of the discriminator; None where the stage has none.

        Returns:
          `nll`: negative log-likelihood of the teacher's answers, turn end included, in nats per token.
          `rouge_l`, `ngram_f1_1` to `ngram_f1_5`: the student's answers against the teacher's, 0 to 1.
          `length_mean`, `length_p95`: tokens of the student's answers; `truncated`: the share that reached the limit.
          `discriminator_accuracy`, `discriminator_margin`: the discriminator on the pairs, where there is one.
        """
        config, programs = self.setup.config, self.programs
        alone = [[ids] for ids in self.teacher]
        likelihoods = self._of_each(programs.likelihoods, generator, alone, programs.parts["generator"])
        figures = {"nll": float(-likelihoods.sum(dtype=np.float64) / sum(map(len, self.teacher)))}
        samples = self._answer(generator, config.evaluation.temperature, config.seed)
        student = [sample.tokens for sample in samples]
        if discriminator is not None:
            pairs = [list(pair) for pair in zip(self.teacher, student, strict=True)]
            judges = programs.judges(discriminator, generator)
            scores = self._of_each(programs.scores, judges, pairs, programs.parts["discriminator"])
            figures["discriminator_accuracy"] = float(np.mean(scores[:, 0] > scores[:, 1]))
            figures["discriminator_margin"] = float(np.mean(scores[:, 0] - scores[:, 1]))
        decode = self.setup.tokenizer.decode
        texts = [decode(ids) for ids in student]
        figures["rouge_l"] = rouge_l(texts, self._texts)
        figures |= {f"ngram_f1_{n}": ngram_f1(texts, self._texts, n) for n in range(1, 6)}
        lengths = length_statistics([len(ids) for ids in student])
        figures |= {"length_mean": lengths["mean"], "length_p95": lengths["p95"]}
        figures["truncated"] = float(np.mean([not sample.ended for sample in samples]))
        answers = Answers(
            rows=[int(example["row"]) for example in self.examples],
            prompts=[decode(ids, skip_special_tokens=False) for ids in self.prompts],
            teacher=self._texts,
            student=texts,
        )
        return figures, answers

    def sampled_figures(self, generator: Params, base: Callable[[], Params]) -> dict[str, float]:
        """The figures of one sample to each held-out prompt, at the rollout's temperature.

        Args:
          generator: whole parameters of the generator.
          base: makes the student's parameters as the run began: the backbone of every fresh classifier.

        Returns:
          `sampled_length_mean`: tokens; `sampled_distinct_2`: different word pairs, 0 to 1.
          `coverage`: where `evaluation.coverage` finds words.
          `two_sample`, `two_sample_low`, `two_sample_high`: accuracy and its 95 % interval, where the test has folds.
        """
        config, decode = self.setup.config, self.setup.tokenizer.decode
        samples = self._answer(generator, config.rollout.temperature, config.seed + 1)
        texts = [decode(sample.tokens) for sample in samples]
        figures = {
            "sampled_length_mean": float(np.mean([len(sample.tokens) for sample in samples])),
            "sampled_distinct_2": distinct_n(texts, 2),
        }
        if config.evaluation.coverage:
            prompts = [decode(ids, skip_special_tokens=False) for ids in self.prompts]
            if (found := coverage(prompts, texts, config.evaluation.coverage)) is not None:
                figures["coverage"] = found
        if config.evaluation.two_sample_folds:
            test = self._two_sample(samples, base())
            figures |= {"two_sample": test.accuracy, "two_sample_low": test.low, "two_sample_high": test.high}
        return figures

    def _two_sample(self, samples: list[Completion], base: Params) -> TwoSampleScore:
        """The two-sample test of samples against the teacher's answers."""
        config = self.setup.config
        limit = config.data.max_response_length
        return two_sample_test(
            self.programs.classifier,
            base,
            self.prompts,
            [ids[:limit] for ids in self.teacher],
            [sample.tokens for sample in samples],
            folds=config.evaluation.two_sample_folds,
            epochs=config.evaluation.two_sample_epochs,
            seed=config.seed,
        )

    def _answer(self, generator: Params, temperature: float, seed: int) -> list[Completion]:
        """One sampled answer to each prompt."""
        params = self.programs.decoding_params(generator)
        return self.programs.engine.generate(params, self.prompts, self.setup.sampling(temperature), seed=seed)

    def _of_each(self, program: Any, params: Any, responses: list[list[np.ndarray]], parts: int) -> np.ndarray:
        """The value that `program` computes for every response: [prompts, R] for R responses to each prompt."""
        rows = rows_of_each(self.setup, self.prompts, responses, parts)
        found = np.asarray(program(params, place_rows(self.setup.mesh, rows)))
        return found.reshape(len(self.prompts), -1)


def rows_of_each(
    blueprint: Blueprint, prompts: Sequence[np.ndarray], responses: Sequence[Sequence[np.ndarray]], parts: int
) -> Packed:
    """Rows [M, ...] of the responses to each prompt.

    A micro-batch holds as many prompts as one of training, so it needs no more memory.

    Args:
      blueprint: the run.
      prompts: token ids of each prompt.
      responses: token ids of the responses to each prompt, equally many for all prompts.
      parts: micro-batches in a batch of training.
    """
    group = len(responses[0])
    return pack(
        [prompt for prompt, answers in zip(prompts, responses, strict=True) for _ in answers],
        [ids for answers in responses for ids in answers],
        micro_batches=-(-len(prompts) // (blueprint.config.batch_size // parts)),
        group=group,
        together=True,
        **dataclasses.asdict(blueprint.row_shape(group)),
    )
