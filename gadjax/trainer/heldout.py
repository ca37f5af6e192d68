"""Figures on held-out prompts: how likely the teacher's answers are, and how the student's own answers compare."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gadjax.data.packing import pack
from gadjax.distill.forward import response_logprobs, sequence_scores
from gadjax.evaluation.text import length_statistics, ngram_f1, rouge_l
from gadjax.evaluation.two_sample import two_sample_test
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as layout
from gadjax.rollout.engine import Engine
from gadjax.trainer.setup import Setup


@dataclasses.dataclass(frozen=True)
class Answers:
    """The student's answers to the held-out prompts, beside the teacher's."""

    rows: list[int]
    prompts: list[str]
    teacher: list[str]
    student: list[str]


class HeldOut:
    """Measures a generator, and a discriminator where there is one, on the first `evaluation.prompts` held-out rows."""

    def __init__(self, setup: Setup):
        self.setup = setup
        limit = setup.config.evaluation.prompts or len(setup.heldout)
        self.examples = [setup.heldout[i] for i in range(min(limit, len(setup.heldout)))]
        self.prompts = [example["prompt"] for example in self.examples]
        self.teacher = [example["response"] for example in self.examples]
        self._engine = Engine(setup.generator, setup.mesh)
        self._nll = jax.jit(functools.partial(_negative_log_likelihood, setup.generator, setup.config.logprob_chunk))
        self._score = jax.jit(functools.partial(_pair_scores, setup.discriminator))
        self._texts = [setup.tokenizer.decode(ids) for ids in self.teacher]

    def figures(self, generator: Params, discriminator: Params | None = None) -> tuple[dict[str, float], Answers]:
        """The held-out figures and the answers that they were measured on.

        Returns:
          `nll`: nats per token of the teacher's answers, turn end included. `rouge_l`, `ngram_f1_1`..`_5`: the
          student's answers against the teacher's, 0 to 1. `length_mean`, `length_p95`, `truncated`: of the student's
          answers, in tokens and as a share. `discriminator_accuracy`, `discriminator_margin`: of this run's
          discriminator over the pairs, where there is one.
        """
        config = self.setup.config
        figures = {"nll": float(self._nll(generator, self._place(self.prompts, self.teacher)))}
        sampling = self.setup.sampling(config.evaluation.temperature)
        samples = self._engine.generate(generator, self.prompts, sampling, seed=config.seed)
        student = [sample.tokens for sample in samples]
        if discriminator is not None:
            rows = self._place(
                [prompt for prompt in self.prompts for _ in range(2)],
                [ids for pair in zip(self.teacher, student, strict=True) for ids in pair],
            )
            scores = np.asarray(self._score(discriminator, rows))
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

    def two_sample(self, generator: Params, base: Params) -> dict[str, Any]:
        """The two-sample test of this generator's samples, at the rollout's temperature, against the teacher.

        Args:
          base: the student's parameters as the run began, the backbone of every fresh classifier.
        """
        config = self.setup.config
        samples = self._engine.generate(
            generator, self.prompts, self.setup.sampling(config.rollout.temperature), seed=config.seed + 1
        )
        limit = config.data.max_response_length
        return two_sample_test(
            Model(self.setup.generator.config, "score"),
            base,
            self.prompts,
            [ids[:limit] for ids in self.teacher],
            [sample.tokens for sample in samples],
            folds=config.evaluation.two_sample_folds,
            epochs=config.evaluation.two_sample_epochs,
            learning_rate=config.evaluation.two_sample_learning_rate,
            seed=config.seed,
        )

    def _place(self, prompts: list[np.ndarray], responses: list[np.ndarray]) -> Any:
        """Packed micro-batches of about one training batch's prompts each, so that they need no more memory than it."""
        shards = self.setup.row_multiple
        parts = max(1, len(responses) // max(1, 2 * self.setup.config.batch_size))
        while len(prompts) % parts or (len(prompts) // parts) % (len(prompts) // len(self.prompts)):
            parts -= 1
        rows = pack(prompts, responses, row_length=self.setup.row_length, micro_batches=parts, row_multiple=shards)
        split = jax.tree.map(lambda _: layout.rows(self.setup.mesh, leading=1), rows)
        return jax.device_put(rows, split.replace(last=layout.replicated(self.setup.mesh)))


def _negative_log_likelihood(model, chunk, params, rows):
    def micro_batch(rows):
        logprobs, _ = response_logprobs(model, params, rows, temperature=1.0, chunk=chunk)
        return -jnp.sum(logprobs * rows.mask)

    return jnp.sum(jax.lax.map(micro_batch, rows)) / jnp.sum(rows.mask)


def _pair_scores(model, params, rows):
    return jax.lax.map(lambda rows: sequence_scores(model, params, rows), rows).reshape(-1, 2)
