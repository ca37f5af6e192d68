"""One training step of each stage: the sequence of `gadjax.distill.steps`, with packing by the host in between."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np

from gadjax.data.packing import Packed
from gadjax.distill.state import GadState
from gadjax.evaluation.text import length_statistics
from gadjax.rollout.sampler import Samples
from gadjax.setup.blueprint import Blueprint, decoding_weights, make_method
from gadjax.setup.prepare import Setup
from gadjax.trainer import host_rows, throughput
from gadjax.trainer.offload import Offload
from gadjax.trainer.programs import Programs, place_rows
from gadjax.trainer.replay import Replay, past_groups

HostBatch = dict[str, np.ndarray]
Metrics = dict[str, Any]


class StageSteps:
    """The steps of one stage. States go in and come out; only `replay` remembers."""

    def __init__(self, setup: Setup, stage: str, replay: Replay):
        self.setup, self.stage, self.replay = setup, stage, replay
        self.section = setup.config[stage]
        self.method = make_method(setup, stage)
        self.programs = Programs(self.method, setup.mesh)
        self.offload = Offload.of(setup.config)
        self._meter = throughput.Meter(list(setup.mesh.devices.flat))
        self._place = functools.partial(place_rows, setup.mesh)
        self._seconds: dict[str, float] = {}
        self._packer = futures.ThreadPoolExecutor(1)  # packs the generator's rows while a device computes

    def compile_first(self, state: GadState) -> None:
        """Compiles the rollout, whose shapes no data changes; `state`: abstract."""
        config, programs = self.setup.config, self.programs
        if self.setup.mesh.size > 1:
            programs.decoding_params.lower(state.generator.params, base=state.base).compile()
        batch = programs.abstract_batch(config.batch_size, self.setup.prompt_width)
        programs.sample_batch.lower(decoding_weights(self.setup, state), *batch).compile()

    def run(self, state: GadState, batch: HostBatch, stage_step: int, step: int) -> tuple[GadState, Metrics]:
        """One step.

        Args:
          state: donated.
          batch: of `gadjax.data.pipeline.batches`.
          stage_step, step: steps done before, in this stage and in the run.

        Returns:
          The state after it and its metrics; `seconds/*` per phase, of which `seconds/compile` is a part, and
          `gadjax.trainer.throughput`'s among them.
        """
        self._seconds, compiled = {}, throughput.compile_seconds()
        trains = self._trains_generator(stage_step)
        teacher = None
        if trains and (self.stage != "gad" or self.method.sft_coefficient):
            teacher = self._pack(host_rows.teacher_rows, 1, batch)
        if self.stage == "seqkd":
            state, metrics = self._supervised(state, teacher)
            metrics["tokens"] = int(batch["teacher_length"].sum())
        else:
            state, samples = self._sample(state, batch, step)
            policy = None
            if trains and self.stage == "gad":
                policy = self._pack(host_rows.policy_rows, self.method.num_samples, batch, samples)
            state, rewards, metrics = self._discriminate(state, batch, samples, step)
            metrics |= response_metrics(samples)
            if trains:
                updated = self._policy(state, policy, rewards, teacher) if policy else self._supervised(state, teacher)
                state, metrics = updated[0], metrics | updated[1]
        metrics |= self._meter.figures(self._seconds, metrics["tokens"])
        self._seconds["compile"] = throughput.compile_seconds() - compiled
        return state, metrics | {f"seconds/{name}": seconds for name, seconds in self._seconds.items()}

    def _pack(self, rows_of: Callable[..., Any], group: int, *sequences: Any) -> futures.Future:
        return self._packer.submit(rows_of, self.method, *sequences, row_shape(self.setup, "generator", group))

    def _trains_generator(self, stage_step: int) -> bool:
        if self.stage == "seqkd":
            return True
        waits = self.stage == "warmup" and self.section.train_discriminator
        return self.section.train_generator and stage_step >= (self.section.discriminator_only_steps if waits else 0)

    def _sample(self, state: GadState, batch: HostBatch, step: int) -> tuple[GadState, Samples]:
        with self._timed("rollout"):
            state = self.offload.arrange(state, "rollout")
            key = jax.random.fold_in(jax.random.key(self.setup.config.seed), step)
            placed = self.programs.place_batch(batch)
            samples = self.programs.sample(state.generator.params, placed, key, base=state.base)
            samples = jax.device_get(samples)
            self._meter.rollout(throughput.of_rollout(self.setup.sampler, batch["prompt_length"], samples))
            return state, samples

    def _discriminate(
        self, state: GadState, batch: HostBatch, samples: Samples, step: int
    ) -> tuple[GadState, np.ndarray, Metrics]:
        """Rewards [B, N] of the discriminator before its update, and the update where the stage has one."""
        config, count = self.setup.config.discriminator, len(batch["row"])
        fresh = {name: value for name, value in batch.items() if name != "row"}
        fresh |= {"tokens": samples.tokens, "lengths": samples.lengths}
        train = self.section.train_discriminator
        with self._timed("discriminator"):
            state = self.offload.arrange(state, "discriminator")
            replayed = None
            if train and self.replay.groups:
                replayed = self.replay.draw(past_groups(config.replay_share, count), (self.setup.config.seed, step))
            shape = row_shape(self.setup, "discriminator", 1 + self.method.num_samples)
            rows, weight = host_rows.group_rows(self.method, fresh, replayed, config.replay_share, shape)
            passes = self._training * self.method.updates_per_step if train else throughput.SCORING
            self._meter.update(throughput.of_rows(self.setup.discriminator, rows, passes))
            rows = self._place(rows)
            if train:
                update = functools.partial(self.programs.update_discriminator, base=state.base, fresh=count)
                discriminator, scores, metrics = update(state.discriminator, rows, weight)
                state = state.replace(discriminator=discriminator)
                self.replay.add(fresh)
            else:
                _, scores, metrics = self.programs.score(state.discriminator, rows, weight, base=state.base)
            return state, scores[:count, 1:], jax.device_get(metrics)

    def _supervised(self, state: GadState, teacher: futures.Future) -> tuple[GadState, Metrics]:
        with self._timed("generator"):
            state = self.offload.arrange(state, "generator")
            rows = self._teacher_rows(teacher)
            generator, metrics = self.programs.update_supervised(state.generator, rows, base=state.base)
            return state.replace(generator=generator), jax.device_get(metrics)

    def _policy(
        self, state: GadState, policy: futures.Future, rewards: jax.Array, teacher: futures.Future | None
    ) -> tuple[GadState, Metrics]:
        with self._timed("generator"):
            rows, sampled = policy.result()
            passes = self._training * self.method.ppo_epochs + throughput.SCORING  # the reference
            self._meter.update(throughput.of_rows(self.setup.generator, rows, passes))
            rows = self._place(rows, leading=2)
            state = self.offload.arrange(state, "reference")
            before = self.programs.reference_logprobs(state.reference, rows, base=state.base)
            state = self.offload.arrange(state, "generator")
            answers = teacher and self._teacher_rows(teacher)
            generator, metrics = self.programs.update_policy(
                state.generator, before, rows, sampled, rewards, answers, base=state.base
            )
            return state.replace(generator=generator), jax.device_get(metrics)

    def _teacher_rows(self, teacher: futures.Future) -> Packed:
        """Placed rows of the teacher's answers, for one pass over them."""
        rows = teacher.result()
        self._meter.update(throughput.of_rows(self.setup.generator, rows, self._training))
        return self._place(rows)

    @property
    def _training(self) -> int:
        lora = self.setup.generator.config.lora
        return throughput.TRAINING_ADAPTERS if lora else throughput.TRAINING

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Wall-clock seconds of a phase, which ends when its results are on the host.

        The metrics are of all updates of the phase, so that none of them is still running then.
        """
        start = time.perf_counter()
        yield
        self._seconds[phase] = time.perf_counter() - start


def row_shape(blueprint: Blueprint, network: str, group: int) -> host_rows.RowShape:
    """How a network's sequences become rows; its micro-batches adapt where the config leaves them to gadjax.

    `group`: sequences of one prompt.
    """
    return blueprint.row_shape(group, adaptive=not blueprint.config.micro_batches[network])


def response_metrics(samples: Samples) -> Metrics:
    """Lengths of the sampled responses, where reward hacking shows first (`docs/algorithm.md`, section 5)."""
    lengths = length_statistics(np.asarray(samples.lengths).reshape(-1))
    return {
        "response/length_mean": lengths["mean"],
        "response/length_p95": lengths["p95"],
        "response/truncated": float(np.mean(~np.asarray(samples.ended))),
        "tokens": int(np.sum(samples.lengths)),
    }
