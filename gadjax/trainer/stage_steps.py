"""The steps of a stage as the trainer runs them: compiled part by part, with rows that the host packs in between."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np

from gadjax.config.method_checks import steps_without_generator
from gadjax.data.chats import Messages
from gadjax.data.packing import Packed, RowShape
from gadjax.distill.method import Baseline, Method
from gadjax.distill.rewards import Advantages, Judgement, Statistics
from gadjax.distill.rows import Batch, PackedByHost, policy_rows, teacher_rows
from gadjax.distill.state import GadState, TrainState
from gadjax.distill.steps import Phase, gad_step, seqkd_step, soda_step, warmup_step
from gadjax.distill.updates import Network
from gadjax.evaluation.text import length_statistics
from gadjax.extensions import rewards_of
from gadjax.parallel import processes
from gadjax.rollout.sampler import Samples
from gadjax.setup.blueprint import Blueprint, decoding_weights, make_method
from gadjax.setup.prepare import Setup
from gadjax.trainer import throughput
from gadjax.trainer.offload import Offload
from gadjax.trainer.programs import Programs, place_rows
from gadjax.trainer.replay import Groups, Replay, pack_groups, past_groups


class GroupRows(NamedTuple):
    """The groups of a step."""

    packed: Packed  # on the host
    placed: Packed  # on the devices
    weight: np.ndarray  # [G] of each group in the discriminator's loss
    fresh: Groups  # the new groups; replayed ones follow them in the rows


TeacherRows = Callable[[], Packed]
PolicyRows = Callable[[], tuple[Packed, np.ndarray]]
Metrics = dict[str, Any]


class StageSteps:
    """Runs the steps of one stage. It holds no state but `replay`: `run` takes a state and returns the next one."""

    def __init__(self, setup: Setup, stage: str, replay: Replay):
        self.setup, self.stage, self.replay = setup, stage, replay
        self.section = setup.config[stage]
        self.method = make_method(setup, stage)
        self.programs = Programs(self.method, setup.mesh)
        self.offload = Offload.of(setup.config)
        self.meter = throughput.Meter(list(setup.mesh.devices.flat))
        self.packer = futures.ThreadPoolExecutor(1)  # packs the generator's rows while a device computes

    def compile_first(self, state: GadState) -> None:
        """Compiles the rollout, whose shapes do not depend on the data. `state` is abstract."""
        config, programs = self.setup.config, self.programs
        if self.setup.mesh.size > 1:
            params = state.reference if self.stage == "soda" else state.generator.params
            programs.decoding_params.lower(params, base=state.base).compile()
        batch = programs.abstract_batch(config.batch_size, self.setup.prompt_width)
        programs.sample_batch.lower(decoding_weights(self.setup, state), *batch).compile()

    def run(self, state: GadState, batch: Batch, stage_step: int, step: int) -> tuple[GadState, Metrics]:
        """Runs one step.

        Args:
          state: donated.
          batch: from `gadjax.data.pipeline.batches`.
          stage_step: steps of this stage done before.
          step: steps of the run done before.

        Returns:
          The new state and the metrics. `seconds/PHASE` are wall-clock times; `seconds/compile` is the part of them
          that was spent on compiling. `gadjax.trainer.throughput` describes the metrics of speed.
        """
        compiled = throughput.compile_seconds()
        parts, samples = self.parts(step), None
        key = jax.random.key(self.setup.config.seed)
        if self.stage == "seqkd":
            state, metrics = seqkd_step(parts, state, batch, train_discriminator=self.section.train_discriminator)
        elif self.stage == "soda":
            state, metrics, samples = soda_step(parts, state, batch, key)
        else:
            run_step = {"warmup": warmup_step, "gad": gad_step}[self.stage]
            state, metrics, samples = run_step(
                parts,
                state,
                batch,
                jax.random.fold_in(key, step),
                train_generator=self._trains_generator(stage_step),
                train_discriminator=self.section.train_discriminator,
            )
        seconds = parts.stopwatch.stop()
        tokens = {"tokens": int(batch["teacher_length"].sum())} if samples is None else response_metrics(samples)
        metrics = {**metrics, **tokens}
        metrics |= self.meter.figures(seconds, metrics["tokens"])
        seconds["compile"] = throughput.compile_seconds() - compiled
        return state, metrics | {f"seconds/{phase}": value for phase, value in seconds.items()}

    def parts(self, step: int) -> CompiledParts:
        """The parts of one step; `step` as in `run`."""
        return CompiledParts(self, step)

    def _trains_generator(self, stage_step: int) -> bool:
        """Whether this step updates the generator: not in the first steps of a warmup that trains both networks."""
        return self.section.train_generator and stage_step >= steps_without_generator(self.setup.config, self.stage)


class CompiledParts:
    """The `gadjax.distill.steps.Parts` of one step of the trainer.

    The generator's rows are functions: a thread packs the rows while a device computes, and the first call waits for it
    and places them on the devices. Every update returns its metrics on the host, so that the time of a phase ends when
    its work is done.
    """

    def __init__(self, steps: StageSteps, step: int):
        self.setup, self.programs, self.replay = steps.setup, steps.programs, steps.replay
        self.method: Method = steps.method
        self.section, self.stage = steps.section, steps.stage
        self.offload, self.meter, self.packer, self.step = steps.offload, steps.meter, steps.packer, step
        self.stopwatch = Stopwatch()
        lora = self.setup.generator.config.lora
        self.training_passes = throughput.TRAINING_ADAPTERS if lora else throughput.TRAINING

    def begin(self, state: GadState, phase: Phase) -> GadState:
        timed = {"reference": "generator", "frozen rollout": "rollout"}
        self.stopwatch.start(timed.get(phase, phase))
        return self.offload.arrange(state, phase)

    def sample(self, state: GadState, batch: Batch, key: jax.Array, *, frozen: bool = False) -> Samples:
        placed = self.programs.place_batch(dict(batch))
        params = state.reference if frozen else state.generator.params
        samples = self.programs.sample(params, placed, key, base=state.base)
        samples = jax.device_get(samples)
        self.meter.rollout(throughput.of_rollout(self.setup.sampler, batch["prompt_length"], samples))
        return samples

    def teacher_rows(self, batch: Batch) -> TeacherRows:
        packed = self._pack(teacher_rows, 1, batch)

        def placed():
            rows = packed.result()
            self.meter.update(throughput.of_rows(self.setup.generator, rows, self.training_passes))
            return place_rows(self.setup.mesh, rows)

        return functools.cache(placed)

    def policy_rows(self, batch: Batch, samples: Samples) -> PolicyRows:
        packed = self._pack(policy_rows, self.method.num_samples, batch, samples)

        def placed():
            rows, sampled = packed.result()
            passes = self.training_passes * self.method.ppo_epochs + throughput.SCORING  # and the reference's pass
            self.meter.update(throughput.of_rows(self.setup.generator, rows, passes))
            return place_rows(self.setup.mesh, rows, leading=2), sampled

        return functools.cache(placed)

    def group_rows(self, batch: Batch, samples: Samples) -> GroupRows:
        """Packed rows of the new groups and of replayed ones after them."""
        config, count = self.setup.config, len(batch["row"])
        fresh = {name: value for name, value in batch.items() if name != "row"}
        fresh |= {"tokens": samples.tokens, "lengths": samples.lengths}
        replayed = None
        if self.replay.groups and self.section.get("train_discriminator"):
            past = past_groups(config.discriminator.replay_share, count)
            replayed = self.replay.draw(past, (config.seed, self.step))
        network = "generator" if self.stage == "soda" else "discriminator"
        lay_out = PackedByHost(row_shape(self.setup, network, 1 + self.method.num_samples))
        rows, weight = pack_groups(self.method, fresh, replayed, config.discriminator.replay_share, lay_out)
        return GroupRows(rows, place_rows(self.setup.mesh, rows), weight, fresh)

    def baseline_logprobs(self, state: GadState, groups: GroupRows, policy: Baseline) -> jax.Array:
        self.meter.update(throughput.of_rows(self.setup.generator, groups.packed, throughput.SCORING))
        params = state.reference if policy == "reference" else state.generator.params
        return self.programs.baseline_logprobs(params, groups.placed, base=state.base)

    def update_discriminator(
        self, state: GadState, groups: GroupRows, baseline: jax.Array | None, *, train: bool
    ) -> tuple[TrainState, Judgement, Metrics]:
        passes = self.training_passes * self.method.updates_per_step if train else throughput.SCORING
        self.meter.update(throughput.of_rows(self.method.discriminator, groups.packed, passes))
        update = self.programs.update_discriminator if train else self.programs.score
        discriminator, judged, metrics = update(
            state.discriminator,
            groups.placed,
            groups.weight,
            baseline,
            base=state.base,
            fresh=len(groups.fresh["prompt"]),
        )
        if train and self.section.get("train_discriminator"):
            self.replay.add(groups.fresh)
        return discriminator if train else state.discriminator, judged, jax.device_get(metrics)

    def reward(self, batch: Batch, samples: Samples, judged: Judgement) -> tuple[Judgement, Metrics]:
        own = self.setup.extensions.reward
        if own is None:
            return judged, {}
        self.stopwatch.start("reward")
        scores = np.array(judged.scores)
        with processes.together():
            if processes.is_first():  # the user's function may give other values in other processes
                chats, answers = self._texts(batch, samples)
                scores[:, 1:] = rewards_of(own, chats, answers, scores[:, 1:].reshape(-1)).reshape(len(scores), -1)
        scores = processes.as_first_has(scores)
        metrics = {"reward/mean": float(scores[:, 1:].mean()), "reward/std": float(scores[:, 1:].std())}
        return judged.replace(scores=scores), metrics

    def _texts(self, batch: Batch, samples: Samples) -> tuple[list[Messages], list[str]]:
        """The chat and the text of each sample, prompt by prompt."""
        source, count = self.setup.train.source, self.method.num_samples
        chats = [messages for row in batch["row"] for messages in [source.messages(int(row))] * count]
        tokens, lengths = samples.tokens.reshape(len(chats), -1), samples.lengths.reshape(-1)
        decode = self.setup.tokenizer.decode
        return chats, [decode(ids[:length]) for ids, length in zip(tokens, lengths, strict=True)]

    def reference_logprobs(self, state: GadState, policy: PolicyRows) -> jax.Array:
        return self.programs.reference_logprobs(state.reference, policy()[0], base=state.base)

    def advantages(
        self, state: GadState, judged: Judgement, samples: Samples
    ) -> tuple[Advantages, Statistics | None, Metrics]:
        given, statistics, metrics = self.programs.advantages(
            judged, samples.logprobs, samples.lengths, state.statistics
        )
        return given, statistics, jax.device_get(metrics)

    def update_policy(
        self,
        state: GadState,
        reference: jax.Array,
        policy: PolicyRows,
        given: Advantages,
        teacher: TeacherRows | None,
    ) -> tuple[TrainState, Metrics]:
        answers = teacher and teacher()
        generator, metrics = self.programs.update_policy(
            state.generator, reference, *policy(), given.samples, answers, given.demonstrations, base=state.base
        )
        return generator, jax.device_get(metrics)

    def update_supervised(self, state: GadState, teacher: TeacherRows, network: Network) -> tuple[TrainState, Metrics]:
        programs = self.programs
        update = programs.update_supervised if network == "generator" else programs.teach_discriminator
        trained, metrics = update(getattr(state, network), teacher(), base=state.base)
        return trained, jax.device_get(metrics)

    def _pack(self, rows_of: Callable[..., Any], group: int, *sequences: Any) -> futures.Future:
        lay_out = PackedByHost(row_shape(self.setup, "generator", group))
        return self.packer.submit(rows_of, self.method, *sequences, lay_out)


class Stopwatch:
    """Wall-clock seconds of phases that follow each other."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phase, self._since = "", 0.0

    def start(self, phase: str) -> None:
        """Ends the phase before and starts this one, which goes on counting where it ran before."""
        now = time.perf_counter()
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def stop(self) -> dict[str, float]:
        """Ends the last phase; the seconds of each."""
        self.start("")
        return self._seconds


def row_shape(blueprint: Blueprint, network: str, group: int) -> RowShape:
    """How a network's sequences become rows. Its micro-batches adapt where the config leaves their number to gadjax.

    `group`: sequences of one prompt.
    """
    return blueprint.row_shape(group, adaptive=not blueprint.config.micro_batches[network])


def response_metrics(samples: Samples) -> Metrics:
    """Lengths of the sampled responses, where reward hacking shows first (`docs/algorithm.md`, section 5, trap 7)."""
    lengths = length_statistics(np.asarray(samples.lengths).reshape(-1))
    return {
        "response/length_mean": lengths["mean"],
        "response/length_p95": lengths["p95"],
        "response/truncated": float(np.mean(~np.asarray(samples.ended))),
        "tokens": int(np.sum(samples.lengths)),
    }
