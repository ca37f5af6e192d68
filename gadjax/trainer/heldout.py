"""Figures on held-out prompts: how likely the teacher's answers are, and how the student's own answers compare."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gadjax.data.packing import pack
from gadjax.distill.forward import per_sequence, response_logprobs, sequence_scores
from gadjax.evaluation.text import length_statistics, ngram_f1, rouge_l
from gadjax.evaluation.two_sample import two_sample_test
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as layout
from gadjax.rollout.engine import Answer, Engine
from gadjax.trainer.blueprint import make_method
from gadjax.trainer.programs import jit_to_move, place_rows
from gadjax.trainer.setup import Setup

_PROMPTS_AT_ONCE = 64


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
        self._engine = Engine(setup.sampler, setup.sampler.mesh, batch_size=_prompts_at_once(setup))
        whole = layout.replicated(setup.mesh)
        self._decoding_params = jit_to_move(setup.sampler.decoding_params, setup.mesh)
        likelihoods = functools.partial(_log_likelihoods, setup.generator, setup.config.logprob_chunk)
        self._likelihoods = jax.jit(likelihoods, out_shardings=whole)
        self._scores = jax.jit(functools.partial(_scores, setup.discriminator), out_shardings=whole)
        methods = [make_method(setup, stage) for stage in setup.config.stages]
        self._parts = {
            "generator": max(method.generator_micro_batches for method in methods),
            "discriminator": max(method.discriminator_micro_batches for method in methods),
        }
        self._texts = [setup.tokenizer.decode(ids) for ids in self.teacher]

    def figures(self, generator: Params, discriminator: Params | None = None) -> tuple[dict[str, float], Answers]:
        """The held-out figures and the answers that they were measured on.

        Returns:
          `nll`: nats per token of the teacher's answers, turn end included. `rouge_l`, `ngram_f1_1`..`_5`: the
          student's answers against the teacher's, 0 to 1. `length_mean`, `length_p95`, `truncated`: of the student's
          answers, in tokens and as a share. `discriminator_accuracy`, `discriminator_margin`: of this run's
          discriminator over the pairs, where there is one.
        """
        config, parts = self.setup.config, self._parts
        alone = [[ids] for ids in self.teacher]
        likelihoods = self._of_each(self._likelihoods, generator, alone, parts["generator"])
        figures = {"nll": float(-likelihoods.sum(dtype=np.float64) / sum(map(len, self.teacher)))}
        samples = self._answer(generator, config.evaluation.temperature, config.seed)
        student = [sample.tokens for sample in samples]
        if discriminator is not None:
            pairs = list(zip(self.teacher, student, strict=True))
            scores = self._of_each(self._scores, discriminator, pairs, parts["discriminator"])
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
          base: the student's parameters as the run began, the backbone of every fresh classifier, which adapters leave
            as it is.
        """
        config = self.setup.config
        samples = self._answer(generator, config.rollout.temperature, config.seed + 1)
        limit = config.data.max_response_length
        return two_sample_test(
            Model(self.setup.generator.config, "score", self.setup.mesh),
            base,
            self.prompts,
            [ids[:limit] for ids in self.teacher],
            [sample.tokens for sample in samples],
            folds=config.evaluation.two_sample_folds,
            epochs=config.evaluation.two_sample_epochs,
            learning_rate=config.evaluation.two_sample_learning_rate,
            seed=config.seed,
        )

    def _answer(self, generator: Params, temperature: float, seed: int) -> list[Answer]:
        """One sampled answer to each prompt."""
        params = self._decoding_params(generator)
        return self._engine.generate(params, self.prompts, self.setup.sampling(temperature), seed=seed)

    def _of_each(self, program: Any, params: Params, responses: list[list[np.ndarray]], parts: int) -> np.ndarray:
        """What `program` finds of every response: [prompts, R] of R responses to each prompt.

        A micro-batch has no more rows than so many prompts fill as one of training has, of which `parts` make a batch.
        """
        rows = pack(
            [prompt for prompt, answers in zip(self.prompts, responses, strict=True) for _ in answers],
            [ids for answers in responses for ids in answers],
            row_length=self.setup.row_length,
            micro_batches=-(-len(self.prompts) // (self.setup.config.batch_size // parts)),
            row_multiple=self.setup.row_multiple,
            adaptive=True,
            group=len(responses[0]),
            together=True,
            share=self.setup.shares_prompts,
        )
        found = np.asarray(program(params, place_rows(self.setup.mesh, rows)))
        return found.reshape(len(self.prompts), -1)


def _prompts_at_once(setup: Setup) -> int:
    """As many as have caches no larger than those of a rollout, whose samples share their prompts'."""
    slots, limit = setup.config.rollout.slots, setup.config.data.max_response_length
    cached = slots * limit + slots // setup.config.rollout.num_samples * setup.prompt_width
    return min(_PROMPTS_AT_ONCE, max(1, cached // setup.sequence_length)) if slots else _PROMPTS_AT_ONCE


def _log_likelihoods(model, chunk, params, rows):
    def micro_batch(rows):
        logprobs, _ = response_logprobs(model, params, rows, temperature=1.0, chunk=chunk)
        return per_sequence(logprobs, rows)

    return jnp.sum(jax.lax.map(micro_batch, rows), axis=0)


def _scores(model, params, rows):
    return jnp.sum(jax.lax.map(lambda rows: sequence_scores(model, params, rows), rows), axis=0)
