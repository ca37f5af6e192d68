"""`python -m gadjax.train` with a log of what it is doing: a program that tests start, and kill.

    python -m tests.faults.logged_run

For each line of its stdin, a JSON list of LOG, OUTPUT and the command's flags, it starts a process that calls the
command's own `main`, and tells its number and then its exit status in lines of stdout. The process is a fork in which
all is imported, as imports take longer than the runs do. It writes to OUTPUT what it prints, and appends a line to LOG,
at once, where a phase of the run begins or ends:

    PID begin|end NAME STEP SECONDS     rollout, update:NETWORK, save, export:NETWORK, measurement; STEP of the run
    PID begin|end start 0 SECONDS       from the command's start to where the loop over steps begins
    PID rows STEP 3,17,4,...            of the training file, that a step trains on

A save begins where the loop asks for it and ends where the checkpoint has its name, which it gets on a thread. The run
has one device, as `conftest.one_device` gives it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_log: list[int] = []  # the file, once there is one


def write(*words: object) -> None:
    os.write(_log[0], (" ".join(map(str, (os.getpid(), *words))) + "\n").encode())


def note(when: str, phase: str, step: int) -> None:
    write(when, phase, step, f"{time.monotonic():.6f}")


@contextlib.contextmanager
def phase(name: str, step: int) -> Iterator[None]:
    note("begin", name, step)
    yield
    note("end", name, step)


def log_calls(owner: Any, function: str, moment: Callable[..., tuple[str, int]]) -> None:
    """`moment`: name and step, of the call's arguments."""
    original = getattr(owner, function)

    @functools.wraps(original)
    def logged(*args: Any, **kwargs: Any) -> Any:
        with phase(*moment(*args)):
            return original(*args, **kwargs)

    setattr(owner, function, logged)


def log_saves(checkpoints: Any) -> None:
    original = checkpoints.save

    def save(self: Any, step: int, *args: Any) -> None:
        note("begin", "save", step)
        threading.Thread(target=_end_of_save, args=(self.directory / str(step), step), daemon=True).start()
        original(self, step, *args)

    checkpoints.save = save


def _end_of_save(place: pathlib.Path, step: int) -> None:
    while not place.exists():
        time.sleep(0.0005)
    note("end", "save", step)


def log_steps(steps: Any) -> None:
    """Logs the rows of each step."""
    original = steps.run

    def run(self: Any, state: Any, batch: Any, stage_step: int, step: int) -> Any:
        write("rows", step + 1, ",".join(map(str, batch["row"])))
        return original(self, state, batch, stage_step, step)

    steps.run = run


class WithoutTorch(importlib.machinery.PathFinder):
    """Imports as where torch is not installed: transformers would take seconds to import it."""

    @classmethod
    def find_spec(cls, name: str, *args: Any) -> importlib.machinery.ModuleSpec | None:
        return None if name == "torch" else super().find_spec(name, *args)


def keep_small_programs() -> None:
    """In the cache of compiled programs, however little they cost: each start after the first compiles none."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def main(argv: list[str]) -> None:
    import jax

    from gadjax import commands, train
    from gadjax.parallel import mesh
    from gadjax.trainer import session
    from gadjax.trainer.loop import TrainingRun
    from gadjax.trainer.stage_steps import CompiledParts, StageSteps
    from gadjax.workdir.checkpoints import Checkpoints

    commands.use_compilation_cache = keep_small_programs
    mesh.make_mesh = functools.partial(mesh.make_mesh, devices=jax.devices()[:1])
    log_steps(StageSteps)
    log_calls(CompiledParts, "sample", lambda self, *_: ("rollout", self.step + 1))
    log_calls(CompiledParts, "update_discriminator", lambda self, *_: ("update:discriminator", self.step + 1))
    log_calls(CompiledParts, "update_supervised", lambda self, *_: ("update:generator", self.step + 1))
    log_calls(CompiledParts, "update_policy", lambda self, *_: ("update:generator", self.step + 1))
    log_saves(Checkpoints)
    log_calls(TrainingRun, "_measure", lambda self, *_: ("measurement", self.position.step))
    log_calls(session, "export_network", lambda workdir, network, params, step, out: (f"export:{network}", step))
    trains = TrainingRun.train

    def ready(self: TrainingRun) -> Any:
        note("end", "start", 0)
        return trains(self)

    TrainingRun.train = ready
    train.main(argv)


def serve() -> None:
    sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutTorch
    import transformers

    from gadjax import commands, train
    from gadjax.trainer import session  # noqa: F401

    transformers.PreTrainedTokenizerFast  # noqa: B018, which is what imports it
    for line in sys.stdin:
        log, output, *flags = json.loads(line)
        if not (number := os.fork()):
            printed = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(printed, stream)
            _log.append(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
            note("begin", "start", 0)
            sys.argv = ["train", *flags]
            train.define_flags()
            commands.run(main)
        print(number, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
