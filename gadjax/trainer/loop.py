"""The loop over stages and steps: train, log, measure, save. Resumes where its last checkpoint stands."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gadjax.config.check import grows_from_generator
from gadjax.data.pipeline import batches
from gadjax.distill import state as states
from gadjax.distill.state import GadState, TrainState
from gadjax.errors import Stopped, UserError, first_line
from gadjax.metrics import MetricsLogger, SampleLog, read_metrics
from gadjax.models import lora
from gadjax.models.model import Model, Params
from gadjax.parallel import processes
from gadjax.progress import RunProgress
from gadjax.setup.blueprint import abstract_state, make_method, state_shardings
from gadjax.setup.initial import initial_base, initial_discriminator, initial_generator
from gadjax.setup.prepare import Setup, stage_lengths
from gadjax.trainer.ahead import Ahead
from gadjax.trainer.heldout import HeldOut
from gadjax.trainer.offload import Offload
from gadjax.trainer.preemption import StopRequest
from gadjax.trainer.profile import Profile
from gadjax.trainer.replay import Groups, Replay
from gadjax.trainer.stage_steps import StageSteps
from gadjax.trainer.watchdogs import Teacher, Watchdogs
from gadjax.workdir.checkpoints import Checkpoints, is_damage

BEFORE = "before"  # the stage name of figures measured before any training
_MEASUREMENT, _ROLLOUT = "measurement", "rollout"  # what is compiled ahead


@dataclasses.dataclass
class Position:
    """Where a run stands."""

    stage: str  # the stage being trained, or the last one finished
    stage_step: int  # its steps done
    step: int  # steps done over all stages


class Run:
    """One run in its workdir."""

    def __init__(
        self,
        setup: Setup,
        workdir: pathlib.Path,
        progress: RunProgress,
        profile: Profile | None = None,
        stop: StopRequest | None = None,
    ):
        self.stop = stop or StopRequest()  # that nobody makes
        self.setup, self.config, self.progress = setup, setup.config, progress
        self.profile = profile or Profile(workdir, 0, 0)  # of no step
        self.lengths = stage_lengths(setup)
        self.offload = Offload.of(self.config)
        self.checkpoints = Checkpoints.of(workdir, self.config, write=True)
        self.heldout = HeldOut(setup) if setup.heldout else None
        saved = self.checkpoints.steps()
        self.replay = Replay(self.config.discriminator.replay_size // self.config.rollout.num_samples)
        stage = self.checkpoints.stage() or self.config.stages[0]
        self._steps = {stage: StageSteps(setup, stage, self.replay)}
        progress.say("reading weights, and compiling meanwhile")
        self.ahead = self._compile_ahead(stage, fresh=not saved)
        self.base = initial_base(setup)
        if saved:
            self.position, self.state = self._restore_newest(saved)
        else:
            self.position = Position(self.config.stages[0], 0, 0)
            self.state = self._enter(self.config.stages[0], initial_generator(setup))
        logging = {"resume_step": self.position.step if saved else None, "write": processes.is_first()}
        with processes.together():
            self.samples = SampleLog(workdir, **logging)
            self.logger = MetricsLogger(
                workdir, tensorboard=self.config.log.tensorboard, wandb=self._wandb(), **logging
            )
            self.watchdogs = Watchdogs(_teacher(setup))
            if saved and processes.is_first():
                self.watchdogs.replay(read_metrics(workdir / "metrics.jsonl"))

    def train(self) -> GadState:
        """Runs every stage that is left, and returns the final state.

        However it ends, checkpoints that are being written reach the disk, and the logs are closed.

        Raises:
          Stopped: the process was told to end (`StopRequest`); the step in progress is finished and saved.
        """
        with contextlib.ExitStack() as closing:  # one that fails keeps none of the others open
            for part in (self.samples, self.logger, self.checkpoints, self.profile):
                closing.callback(part.close)
            if self.stop.is_set():  # since the program began
                raise self._stopped()
            self._run_stages()
        self.state = self.offload.arrange(self.state, "measure")  # both networks where they can be read
        return self.state

    def _run_stages(self) -> None:
        if self.position.step == 0 and self.heldout:
            self._measure(BEFORE, two_sample=not self.config.random_init)  # noise needs no test
        stages = list(self.config.stages)
        left = self.position.stage != stages[-1] or self.position.stage_step < self.lengths[stages[-1]]
        if left and (alarm := self._alarm()):  # started again as it was, by a scheduler say
            raise alarm
        for stage in stages[stages.index(self.position.stage) :]:
            if stage != self.position.stage:
                self.state = self.offload.arrange(self.state, "measure")
                generator, discriminator = self.state.generator.params, self.state.discriminator
                discriminator = discriminator and discriminator.params
                self.state = None  # the old moments make room for the reference and the new ones
                self.state = self._enter(stage, generator, discriminator)
                self.position = dataclasses.replace(self.position, stage=stage, stage_step=0)
            if self.position.stage_step < self.lengths[stage]:
                self._train_stage(stage)

    def _train_stage(self, stage: str) -> None:
        steps = self._steps.pop(stage, None) or StageSteps(self.setup, stage, self.replay)
        self.ahead.wait(_ROLLOUT)
        total = self.lengths[stage]
        self.progress.start_stage(stage, total, self.position.stage_step)
        for batch in self._batches(stage):
            number = self.position.step + 1
            with self.profile.step(number):
                self.state, metrics = steps.run(self.state, batch, self.position.stage_step, self.position.step)
            self.position.stage_step += 1
            self.position.step += 1
            self._watch(self.logger.log(self.position.step, stage, metrics))
            self.progress.advance(figures_that_matter(metrics))
            self._check_skipped(steps.method.updates)
            finished = self.position.stage_step == total
            figures: dict[str, float] = {}
            if self.heldout and (finished or self._due(self.config.eval_every)):
                trained = stage == "seqkd" or self.config[stage].train_generator
                figures = self._measure(stage, two_sample=finished and trained)
            alarm, stopped = self._alarm(), self.stop.is_set()  # processes ask together
            due = finished or self._due(self.config.checkpoint.every) or self._stays()
            if due or alarm or stopped or self._improves(figures):
                self._save(figures)
            if alarm:
                raise alarm
            if stopped:
                raise self._stopped()
            if finished:
                break
        self.progress.end_stage()

    def _stopped(self) -> Stopped:
        step = self.position.step
        where = f"and saved at step {step}; the same command goes on from there" if step else "before the first step"
        return Stopped(f"stopped {where}")

    def _stays(self) -> bool:
        """Whether a checkpoint of this step would be kept for its number."""
        every = self.config.checkpoint.keep_every
        return every > 0 and self.position.step % every == 0

    def _improves(self, figures: dict[str, float]) -> bool:
        """Whether to save for these figures: the first process says, as a save that one alone begins would hang."""
        if not (self.config.checkpoint.best and figures):
            return False
        return processes.as_first_says(self.checkpoints.improves(figures))

    def _due(self, every: int) -> bool:
        return every > 0 and self.position.stage_step % every == 0

    def _batches(self, stage: str) -> Iterator[dict[str, np.ndarray]]:
        seed = self.config.seed + 7919 * self.config.stages.index(stage)  # each stage in an order of its own
        start = self.position.stage_step
        return iter(batches(self.setup.train, batch_size=self.config.batch_size, seed=seed, start_step=start))

    def _enter(self, stage: str, generator: Params, discriminator: Params | None = None) -> GadState:
        """The state at a stage's start: fresh optimizers, and for gad the policy that the KL is measured against.

        Args:
          generator, discriminator: trained parameters as the stage before left them, None for no discriminator yet;
            taken over.
        """
        method = make_method(self.setup, stage)
        reference = None
        if stage == "gad":
            dtype = self.setup.generator.config.dtype
            reference = jax.tree.map(lambda leaf: jnp.array(leaf, dtype, copy=True), generator)
        if stage != "seqkd" and discriminator is None:
            discriminator = self._first_discriminator(generator)
        generator = self._create(generator, method.generator, method.generator_optimizer)
        state = self.offload.arrange(GadState(generator, reference=reference, base=self.base), "rollout")
        if stage != "seqkd":
            discriminator = self._create(discriminator, method.discriminator, method.discriminator_optimizer)
            state = self.offload.arrange(state.replace(discriminator=discriminator), "rollout")
        return state

    def _first_discriminator(self, generator: Params) -> Params:
        """Of the checkpoint that the config names, or grown: from the student, or from the generator as it is now."""
        trained = self.position.step > 0
        if self.setup.discriminator_init is None and trained and not grows_from_generator(self.config):
            generator = initial_generator(self.setup)
        return initial_discriminator(self.setup, generator)

    def _create(self, params: Params, model: Model, optimizer: optax.GradientTransformation) -> TrainState:
        """A fresh state in the training layout; takes the parameters over."""
        shardings = state_shardings(model, optimizer, self.setup.mesh)
        create = jax.jit(lambda params: states.create(params, optimizer), donate_argnums=0, out_shardings=shardings)
        return create(params)

    def _restore_newest(self, saved: list[int]) -> tuple[Position, GadState]:
        """Of the newest checkpoint that is whole. The damaged ones after it are set aside, and said to be.

        `saved`: steps, ascending.
        """
        damaged: dict[int, BaseException] = {}
        for step in reversed(saved):
            try:
                found = self._restore(step)
            except Exception as error:  # Orbax has no narrower class for arrays that cannot be read
                if not is_damage(error):
                    raise
                if processes.count() > 1:  # of which others may find nothing wrong
                    raise UserError(
                        f"{self.checkpoints.directory / str(step)} is damaged ({first_line(error)}): rename this "
                        "folder, and the same command goes on from the checkpoint before"
                    ) from error
                damaged[step] = error
                continue
            for other, error in damaged.items():
                aside = self.checkpoints.set_aside(other)
                self.progress.say(f"warning: the checkpoint of step {other} is damaged ({first_line(error)}): {aside}")
            return found
        newest = saved[-1]
        raise UserError(
            f"{self.checkpoints.directory}: no checkpoint can be read; the newest, of step {newest}, fails with: "
            f"{first_line(damaged[newest])}. Restore the folder from a copy, or use another --workdir"
        ) from damaged[newest]

    def _restore(self, step: int) -> tuple[Position, GadState]:
        progress = self.checkpoints.progress(step)
        position = Position(progress["stage"], progress["stage_step"], step)
        like = self.offload.arrange(abstract_state(self.setup, position.stage), "rollout")
        state = GadState(**self.checkpoints.state(step, saved_networks(like)), base=self.base)
        if self.replay.groups and progress["replay_added"]:
            if not (arrays := self.checkpoints.replay(step)):
                raise ValueError("its replayed groups are gone")
            if self._replay_fits(arrays):
                self.replay.arrays, self.replay.added = arrays, progress["replay_added"]
            else:  # --force, with other limits or data
                self.progress.say("warning: the replayed groups have other sizes than this run's: replay starts empty")
        return position, state

    def _replay_fits(self, groups: Groups) -> bool:
        """Whether saved groups are of the sizes that this run's are."""
        config, train = self.setup.config, self.setup.train
        sizes = {
            "tokens": (config.rollout.num_samples, config.data.max_response_length),
            "prompt": (train.prompt_width,),
            "teacher": (train.response_width,),
        }
        return all(groups[name].shape == (self.replay.groups, *size) for name, size in sizes.items())

    def _save(self, figures: dict[str, float]) -> None:
        """`figures`: measured on held-out prompts at this step, if any."""
        progress = {**dataclasses.asdict(self.position), "replay_added": self.replay.added, "figures": figures}
        for log in (self.samples, self.logger):
            log.sync()  # of what a checkpoint stands for, nothing is written again
        self.checkpoints.save(self.position.step, saved_networks(self.state), self.replay.arrays, progress)

    def _compile_ahead(self, stage: str, *, fresh: bool) -> Ahead:
        """Of the run's first measurement, where it has one, and of the first steps."""
        state, jobs = abstract_state(self.setup, stage), {}
        if fresh and self.heldout:
            jobs[_MEASUREMENT] = functools.partial(self.heldout.compile_first, state)
        if stage != "seqkd":
            jobs[_ROLLOUT] = functools.partial(self._steps[stage].compile_first, state)
        return Ahead(jobs)

    def _measure(self, stage: str, *, two_sample: bool) -> dict[str, float]:
        self.ahead.wait(_MEASUREMENT)
        self.state = self.offload.arrange(self.state, "measure")
        generator, discriminator = self.state.generator, self.state.discriminator
        generator = lora.join(self.base, generator.params)
        discriminator = discriminator and lora.join(self.base, discriminator.params)
        figures, answers = self.heldout.figures(generator, discriminator)
        if two_sample and self.config.evaluation.two_sample_folds:
            student = initial_generator(self.setup) if self.base is None else self.base
            test = self.heldout.two_sample(generator, student)
            figures |= {"two_sample": test.accuracy, "two_sample_low": test.low, "two_sample_high": test.high}
        self.logger.log_heldout(self.position.step, stage, figures)
        shown = list(zip(answers.rows, answers.prompts, answers.teacher, answers.student, strict=True))
        for answer in itertools.islice(shown, self.config.evaluation.shown):
            self.samples.log(self.position.step, stage, *answer)
        return {name: float(value) for name, value in figures.items()}

    def _watch(self, figures: dict[str, Any]) -> None:
        """Shows and records what the watchdogs say of the step just made."""
        stage, step = self.position.stage, self.position.step
        for alert in self.watchdogs.see(stage, step, figures):
            self.logger.log_warning(step, stage, alert.watchdog, alert.row(), alert.line())
            self.progress.say(alert.line())

    def _alarm(self) -> UserError | None:
        """Why the run stops here, in every process: the first one's watchdogs decide, as speeds differ."""
        if not self.config.stop_on:
            return None
        try:
            with processes.together():
                standing = self.watchdogs.standing(self.position.stage) if processes.is_first() else {}
                for name in (name for name in self.config.stop_on if name in standing):
                    raise UserError(
                        f"stopped after step {self.position.step}, which is saved (config.stop_on={name}): "
                        f"{standing[name].seen}; {standing[name].advice}; the run goes on from there when "
                        f"config.stop_on no longer names {name}"
                    )
        except UserError as error:
            return error
        return None

    def _check_skipped(self, updates: dict[str, int]) -> None:
        """Stops a run of whose last steps no update was good. `updates`: of each network in a step."""
        limit = self.config.optimizer.max_skipped_steps
        for name, count in updates.items():
            state = getattr(self.state, name)
            if state is not None and int(state.skipped_in_row) >= limit * count:
                raise UserError(
                    f"the {name}'s gradient was not finite for {limit} steps in a row, to step {self.position.step} "
                    f"(config.optimizer.max_skipped_steps): lower config.{self.position.stage}.{name}_learning_rate, "
                    "or look at the data of those steps"
                )

    def _wandb(self) -> dict[str, Any] | None:
        if not self.config.log.wandb_project:
            return None
        return {"project": self.config.log.wandb_project, "config": self.config.to_dict()}


def saved_networks(state: GadState) -> dict[str, Any]:
    """What a checkpoint holds of a state: not the base, which the student's files hold."""
    return {name: getattr(state, name) for name in ("generator", "discriminator", "reference")}


def _teacher(setup: Setup) -> Teacher:
    """Of the answers that the run learns from."""
    return Teacher(float(setup.train.answers.lengths.mean()), 1.0 - float(setup.train.ended.mean()))


def figures_that_matter(metrics: dict[str, Any]) -> dict[str, float]:
    """The few figures that the progress bar has room for."""
    names = {
        "generator/loss": "loss",
        "generator/kl": "kl",
        "discriminator/accuracy": "D acc",
        "reward/mean": "reward",
        "response/length_mean": "len",
    }
    return {short: float(metrics[name]) for name, short in names.items() if name in metrics}
