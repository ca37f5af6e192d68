"""The loop over stages and steps: train, log, measure, save. It resumes from the newest checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from gadjax.config.check import samples_heldout
from gadjax.data.pipeline import batches
from gadjax.distill.state import GadState
from gadjax.errors import Stopped, UserError
from gadjax.extensions import StepDone
from gadjax.metric_views import Sample
from gadjax.metrics import MetricsLogger, SampleLog, read_metrics
from gadjax.models import lora
from gadjax.models.model import Params
from gadjax.parallel import processes
from gadjax.progress import RunProgress, figures_that_matter
from gadjax.setup.blueprint import abstract_state
from gadjax.setup.initial import initial_base, initial_generator
from gadjax.setup.prepare import Setup, stage_lengths
from gadjax.trainer import throughput
from gadjax.trainer.background_compile import BackgroundCompile
from gadjax.trainer.heldout import HeldOut
from gadjax.trainer.offload import Offload
from gadjax.trainer.preemption import StopRequest
from gadjax.trainer.profile import Profile
from gadjax.trainer.replay import Replay
from gadjax.trainer.restore import Position, restore_newest, saved_networks
from gadjax.trainer.stage_start import enter_stage
from gadjax.trainer.stage_steps import StageSteps
from gadjax.trainer.watchdog_rules import TeacherLengths
from gadjax.trainer.watchdogs import Watchdogs
from gadjax.workdir.checkpoints import Checkpoints

BEFORE = "before"  # the stage name of figures measured before any training
_MEASUREMENT, _ROLLOUT = "measurement", "rollout"  # what is compiled ahead


class TrainingRun:
    """A run in its workdir."""

    def __init__(
        self,
        setup: Setup,
        workdir: pathlib.Path,
        progress: RunProgress,
        profile: Profile | None = None,
        stop: StopRequest | None = None,
    ):
        """Reads the weights, or the newest checkpoint, and opens the logs.

        Args:
          setup: the checked run.
          workdir: its folder, prepared (`gadjax.workdir.facts.prepare_workdir`).
          progress: shows what happens.
          profile: the steps to trace; None traces none.
          stop: asks the run to end; None never does.
        """
        self.stop = stop or StopRequest()
        self.setup, self.config, self.progress = setup, setup.config, progress
        self.profile = profile or Profile(workdir, 0, 0)  # traces no step
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
            self.position, self.state = restore_newest(
                setup, self.checkpoints, saved, self.replay, base=self.base, say=progress.say
            )
        else:
            self.position = Position(self.config.stages[0], 0, 0)
            generator = initial_generator(setup)
            self.state = enter_stage(setup, self.config.stages[0], generator, base=self.base, is_first=True)
        logging: Any = {"resume_step": self.position.step if saved else None, "write": processes.is_first()}
        with processes.together(), contextlib.ExitStack() as opened:  # logs are closed where the next one fails
            self.samples = SampleLog(workdir, **logging)
            opened.callback(self.samples.close)
            views: Any = {"tensorboard": self.config.log.tensorboard, "wandb": self._wandb()}
            self.logger = MetricsLogger(workdir, config=self.config.to_dict(), **views, **logging)
            opened.callback(self.logger.close)
            self.watchdogs = Watchdogs(_teacher(setup), scalar=setup.discriminator.head == "score")
            if saved and processes.is_first():
                self.watchdogs.replay(read_metrics(workdir / "metrics.jsonl"))
            opened.pop_all()

    def train(self) -> GadState:
        """Runs the stages that are left, and returns the final state.

        However it ends, the checkpoints in progress reach the disk, and the logs are closed.

        Raises:
          Stopped: the process was told to end (`StopRequest`); the step in progress is finished and saved.
          KeyboardInterrupt: the same after a Ctrl-C. A second one raises it at once, and nothing more is saved.
        """
        with contextlib.ExitStack() as closing:  # where one fails to close, the others are closed all the same
            for part in (self.samples, self.logger, self.checkpoints, self.profile):
                closing.callback(part.close)
            closing.enter_context(self.stop.minding_interrupts())
            if self.stop.is_set():  # asked for before the first step
                raise self._stopped()
            self._run_stages()
        self.state = self.offload.arrange(self.state, "measure")  # both networks on the devices
        return self.state

    def _run_stages(self) -> None:
        if self.position.step == 0 and self.heldout:
            self._measure(BEFORE, samples=not self.config.random_init)  # random weights need no test
        stages = list(self.config.stages)
        left = self.position.stage != stages[-1] or self.position.stage_step < self.lengths[stages[-1]]
        if left and (alarm := self._alarm()):  # a scheduler has started the run again, unchanged
            raise alarm
        for stage in stages[stages.index(self.position.stage) :]:
            if stage != self.position.stage:
                networks, is_first = self._release_networks(), self.position.step == 0
                self.state = enter_stage(self.setup, stage, *networks, base=self.base, is_first=is_first)
                self.position = dataclasses.replace(self.position, stage=stage, stage_step=0)
            if self.position.stage_step < self.lengths[stage]:
                self._train_stage(stage)

    def _release_networks(self) -> tuple[Params, Params | None]:
        """The trained parameters of both networks. The old moments make room for the reference and new moments."""
        state, self.state = self.offload.arrange(self.state, "measure"), None
        return state.generator.params, None if state.discriminator is None else state.discriminator.params

    def _train_stage(self, stage: str) -> None:
        steps = self._steps.pop(stage, None) or StageSteps(self.setup, stage, self.replay)
        total = self.lengths[stage]
        self.progress.start_stage(stage, total, self.position.stage_step)
        self.ahead.wait(_ROLLOUT)
        compiled = throughput.compile_seconds()
        for batch in self._batches(stage):
            # Train one step.
            number = self.position.step + 1
            with self.profile.step(number):
                self.state, metrics = steps.run(self.state, batch, self.position.stage_step, self.position.step)
            self.position.stage_step += 1
            self.position.step += 1

            # Log it, and look for what is wrong.
            logged = self.logger.log(self.position.step, stage, metrics)
            self._watch(logged)
            before, compiled = compiled, throughput.compile_seconds()
            self.progress.advance(figures_that_matter(metrics), compiled - before)
            self._check_skipped(steps.method.updates)

            # Measure on held-out prompts where it is due.
            finished = self.position.stage_step == total
            figures: dict[str, float] = {}
            if self.heldout and (finished or self._due(self.config.eval_every)):
                trained = self.config[stage].get("train_generator", True)
                figures = self._measure(stage, samples=finished and trained)

            # Save where it is due, and end where a watchdog, a callback or a signal says so. All processes ask here
            # together.
            ended = self._call_back(logged, figures)
            alarm, stopped = self._alarm(), self.stop.is_set() or ended
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

    def _call_back(self, logged: dict[str, Any], figures: dict[str, float]) -> bool:
        """Calls the user's callbacks in the first process; whether one of them asks the run to end."""
        if not (callbacks := self.setup.extensions.callbacks):
            return False
        asked = threading.Event()
        here = self.position
        done = StepDone(here.stage, here.step, here.stage_step, self.lengths[here.stage], logged, figures, asked.set)
        with processes.together():
            for callback in callbacks if processes.is_first() else ():
                callback(done)
        return processes.as_first_says(asked.is_set())

    def _stopped(self) -> Stopped | KeyboardInterrupt:
        step = self.position.step
        where = f"and saved at step {step}; the same command goes on from there" if step else "before the first step"
        return (KeyboardInterrupt if self.stop.interrupted else Stopped)(f"stopped {where}")

    def _stays(self) -> bool:
        """Whether `checkpoint.keep_every` keeps a checkpoint of this step."""
        every = self.config.checkpoint.keep_every
        return every > 0 and self.position.step % every == 0

    def _improves(self, figures: dict[str, float]) -> bool:
        """Whether these figures are the best so far. Process 0 decides, since all must begin a save together."""
        if not (self.config.checkpoint.best and figures):
            return False
        return processes.as_first_says(self.checkpoints.improves(figures))

    def _due(self, every: int) -> bool:
        return every > 0 and self.position.stage_step % every == 0

    def _batches(self, stage: str) -> Iterator[dict[str, np.ndarray]]:
        """The batches of a stage, from its next step on. Each stage has an order of its own."""
        seed = self.config.seed + 7919 * self.config.stages.index(stage)
        start = self.position.stage_step
        return iter(batches(self.setup.train, batch_size=self.config.batch_size, seed=seed, start_step=start))

    def _save(self, figures: dict[str, float]) -> None:
        """Saves this step. `figures`: the held-out figures measured at it, if any."""
        progress = {**dataclasses.asdict(self.position), "replay_added": self.replay.added, "figures": figures}
        for log in (self.samples, self.logger):
            log.sync()  # a resumed run writes none of these rows again
        self.checkpoints.save(self.position.step, saved_networks(self.state), self.replay.arrays, progress)

    def _compile_ahead(self, stage: str, *, fresh: bool) -> BackgroundCompile:
        """Starts to compile the first measurement, if the run has one, and the first rollout."""
        state, jobs = abstract_state(self.setup, stage), {}
        if fresh and self.heldout:
            jobs[_MEASUREMENT] = functools.partial(self.heldout.compile_first, state)
        if stage != "seqkd":
            jobs[_ROLLOUT] = functools.partial(self._steps[stage].compile_first, state)
        return BackgroundCompile(jobs)

    def _measure(self, stage: str, *, samples: bool) -> dict[str, float]:
        """Measures on held-out prompts and logs the figures, with `samples` those of samples too."""
        with self.progress.doing(f"measuring on {len(self.heldout.prompts)} held-out prompts"):
            self.ahead.wait(_MEASUREMENT)
            self.state = self.offload.arrange(self.state, "measure")
            generator = lora.join(self.base, self.state.generator.params)
            critic = self.state.discriminator
            discriminator = None if critic is None else lora.join(self.base, critic.params)
            figures, answers = self.heldout.figures(generator, discriminator)
            if samples and samples_heldout(self.config):
                student = lambda: initial_generator(self.setup) if self.base is None else self.base  # noqa: E731
                figures |= self.heldout.sampled_figures(generator, student)
        self.logger.log_heldout(self.position.step, stage, figures)
        columns = answers.rows, answers.prompts, answers.teacher, answers.student
        shown = [Sample(*each) for each in zip(*columns, strict=True)]
        shown = shown[: self.config.evaluation.shown]
        for sample in shown:
            self.samples.log(self.position.step, stage, sample)
        self.logger.show_samples(self.position.step, stage, shown)
        return {name: float(value) for name, value in figures.items()}

    def _watch(self, figures: dict[str, Any]) -> None:
        """Shows and logs what the watchdogs say about the step just made."""
        stage, step = self.position.stage, self.position.step
        for alert in self.watchdogs.see(stage, step, figures):
            self.logger.log_warning(step, stage, alert.watchdog, alert.row(), alert.line())
            self.progress.say(alert.line())

    def _alarm(self) -> UserError | None:
        """Why the run stops here, if a watchdog of `config.stop_on` warns.

        The first process decides for all: the speeds that they see differ.
        """
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
        """Stops the run if no update of the last steps was finite. `updates`: how many a step has, by network."""
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


def _teacher(setup: Setup) -> TeacherLengths:
    """The lengths of the teacher's answers that the run learns from."""
    return TeacherLengths(float(setup.train.answers.lengths.mean()), 1.0 - float(setup.train.ended.mean()))
