"""A run from its first check to its exports. `gadjax.train.run` calls it."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from gadjax.data.pipeline import Counts, Dataset, shared_prompts
from gadjax.errors import Stopped
from gadjax.evaluation.run_page import write_run_page
from gadjax.extensions import NO_EXTENSIONS, Extensions
from gadjax.metrics import read_heldout
from gadjax.parallel import processes
from gadjax.progress import RunProgress
from gadjax.setup.prepare import Setup, prepare_run, stage_lengths
from gadjax.trainer.compile_notice import CompileNotice
from gadjax.trainer.loop import TrainingRun
from gadjax.trainer.preemption import StopRequest
from gadjax.trainer.profile import Profile
from gadjax.workdir.checkpoints import checkpoint_directory, clear_unfinished
from gadjax.workdir.disk import check_space
from gadjax.workdir.facts import NETWORKS, prepare_workdir
from gadjax.workdir.lock import WorkdirLock
from gadjax.workdir.network_export import export_network
from gadjax.workdir.resume import check_processes, check_workdir


def train_and_export(
    config: ConfigDict,
    workdir: pathlib.Path,
    profile: tuple[int, int] | None = None,
    *,
    force: bool = False,
    extensions: Extensions = NO_EXTENSIONS,
) -> dict[str, dict[str, float]]:
    """Trains and exports; see `gadjax.train.run`."""
    first = processes.is_first()
    with (
        WorkdirLock(workdir) as alone,
        StopRequest() as stop,
        RunProgress(enabled=first) as progress,
        CompileNotice(progress.say),
    ):
        # Check everything that can be checked before weights are read.
        progress.say("reading config, tokenizer and data")
        with processes.together():
            setup = prepare_run(config, progress.count, extensions)
        check_processes(setup, workdir)
        with processes.together():
            saved = check_workdir(setup, workdir, force=force, say=progress.say)
        # Take the workdir, and write down whose run it holds.
        with processes.together():
            if first:
                if workdir.exists():
                    alone.take()
                clear_unfinished(checkpoint_directory(workdir, config.checkpoint.directory))
        with processes.together():
            check_space(setup, workdir, saved)
        prepare_workdir(setup, workdir, alone, begins=not saved)
        # Read the weights, or the newest checkpoint, and train.
        progress.say(describe(setup))
        run = TrainingRun(setup, workdir, progress, profile and Profile(workdir / "profile", *profile), stop)
        if run.position.step:
            progress.say(f"continuing {workdir} after step {run.position.step}")
        with processes.watched():
            state = run.train()
            with processes.together():
                pass  # until the first process has written all logs
            figures = read_heldout(workdir / "metrics.jsonl")
            # Export every network that was trained.
            exported: dict[str, pathlib.Path] = {}
            for network in NETWORKS:
                trained = getattr(state, network)
                if trained is not None:
                    if stop.is_set():
                        raise Stopped("stopped before all is exported; the same command does the rest")
                    exported[network] = workdir / "export" / network
                    progress.say(f"writing {exported[network]}")
                    export_network(workdir, network, trained.params, run.position.step, exported[network])
        if first:
            write_run_page(workdir)
        progress.summary(figures, workdir, run.checkpoints.directory, exported)
        if best := run.checkpoints.best():
            step, figure = best
            progress.say(
                f"Best checkpoint: step {step}, {config.checkpoint.best} {figure:.4g}; "
                f"python -m gadjax.export --workdir={workdir} --step=best --out=DIR"
            )
    return figures


def describe(setup: Setup) -> str:
    """A few lines that say what will be trained, on which data and devices."""
    mesh = " x ".join(f"{name} {size}" for name, size in setup.mesh.shape.items())
    if (count := processes.count()) > 1:
        mesh += f", {count} processes"
    stages = ", ".join(f"{stage} {steps} steps" for stage, steps in stage_lengths(setup).items())
    parameters = f"{setup.generator.num_params():,} parameters"
    if setup.generator.config.lora:
        parameters += f", of which {setup.generator.num_trained():,} are trained (LoRA)"
    lines = [
        f"student: {setup.config.student}, {parameters}, {setup.generator.config.dtype}",
        *_data_lines(f"train: {setup.config.data.train}", setup.train),
        *(
            _data_lines(f"held out: {setup.config.data.heldout}", setup.heldout)
            if setup.heldout and setup.config.data.heldout
            else [f"held out: of the same: {describe_counts(setup.heldout.counts)}"]
            if setup.heldout
            else ["held out: none, so nothing will be measured"]
        ),
        f"devices: {setup.mesh.devices.size} {setup.mesh.devices.flat[0].device_kind} ({mesh})",
        f"stages: {stages}; batch {setup.config.batch_size} x {setup.config.rollout.num_samples}",
    ]
    if directory := setup.config.checkpoint.directory:
        lines.append(f"checkpoints: {directory}")
    if setup.heldout and (shared := shared_prompts(setup.train, setup.heldout)):
        lines.append(f"warning: {shared} held-out prompts are trained on too; figures on them flatter")
    return "\n".join(lines)


def _data_lines(name: str, data: Dataset) -> list[str]:
    """What the rows of some data were taken for, and how many are used; a line more for each format of several."""
    taken, counts = data.source.taken_for, describe_counts(data.counts)
    if len(taken) == 1:
        return [f"{name} ({taken[0].label}): {counts}"]
    more = [
        f"  {one.rows} row{'s' * (one.rows > 1)} of {one.files} file{'s' * (one.files > 1)} taken for {one.label}"
        for one in taken
    ]
    return [f"{name}: {counts}", *more]


def describe_counts(counts: Counts) -> str:
    """One line that says how many rows of a file are used, and why others are not."""
    reasons = {
        "marked as no answer": counts.dropped_marked,
        "cut by the API": counts.dropped_cut,
        "with too long a prompt": counts.dropped_long_prompt,
    }
    dropped = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    text = f"{counts.usable} of {counts.rows} rows" + (f" ({dropped})" if dropped else "")
    return text + (f"; {counts.truncated_answers} answers cut here" if counts.truncated_answers else "")
