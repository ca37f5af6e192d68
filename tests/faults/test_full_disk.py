"""Disks that fill up in the midst of a run: one line says it, nothing saved is lost, and with room the run goes on."""

from __future__ import annotations

import abc
import contextlib
import os
import pathlib
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from gadjax.errors import UserError
from gadjax.train import run
from gadjax.trainer import session
from gadjax.trainer.loop import TrainingRun
from gadjax.workdir.checkpoints import Checkpoints
from tests.runs import assert_same_run

pytestmark = [
    pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of Orbax's threads that failed
]

FIELDS = {"stages": ("seqkd",), "seqkd.steps": 8, "eval_every": 1, "checkpoint.keep": 9, "log.tensorboard": True}

LOGS = r"(metrics\.jsonl|samples\.jsonl|events\.out\.tfevents\.[\d.]+): cannot be written \(.*\); make room there"
SAVE = r"checkpoints: a checkpoint cannot be written \(.*\); those of earlier steps are whole: make room there"
EXPORT = r"export/generator: the export cannot be written \(.*"


class Room(abc.ABC):
    """A folder for a run, and the room in it."""

    def __init__(self, folder: pathlib.Path):
        self.workdir = folder / "run"

    @abc.abstractmethod
    def take(self, left: int) -> None:
        """Leaves room for this many bytes."""

    @abc.abstractmethod
    def give(self) -> None:
        """There is room again."""


class LargestFile(Room):
    """The system refuses to let a file grow past a limit, which needs no rights; it stands for a full disk."""

    def take(self, left: int) -> None:
        logs = (self.workdir / "metrics.jsonl").stat().st_size
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (logs + left, most))

    def give(self) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


class SmallDisk(Room):
    """A disk in memory."""

    def take(self, left: int) -> None:
        size = os.statvfs(self.workdir)
        (self.workdir.parent / "filler").write_bytes(b"\0" * max(0, size.f_bavail * size.f_frsize - left))

    def give(self) -> None:
        (self.workdir.parent / "filler").unlink()


@pytest.fixture(params=["a limit of files", pytest.param("a disk", marks=pytest.mark.slow)])
def room(request, tmp_path) -> Iterator[Room]:
    if request.param == "a limit of files":
        room = LargestFile(tmp_path)
        yield room
        room.give()
        return
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk takes rights that this process lacks")
    try:
        yield SmallDisk(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def before(moment: int | str, action: Callable[[], None]) -> Iterator[None]:
    """Does something once a step of the run is logged and all checkpoints are written, or before the first export."""

    def checked(self, updates):
        if self.position.step == moment:
            self.checkpoints.wait()
            action()
        check(self, updates)

    def export(*arguments):
        action()
        write(*arguments)

    check, write = TrainingRun._check_skipped, session.export_network
    with pytest.MonkeyPatch.context() as patch:
        if moment == "export":
            patch.setattr(session, "export_network", export)
        else:
            patch.setattr(TrainingRun, "_check_skipped", checked)
        yield


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tmp_path_factory) -> pathlib.Path:
    """The workdir of a run that had room all along."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(tiny_config(FIELDS), workdir)
    return workdir


@pytest.mark.parametrize(
    ("moment", "left", "every", "message", "saved"),
    [(1, 0, 99, LOGS, []), (3, 20_000, 1, SAVE, [1, 2]), ("export", 20_000, 4, EXPORT, [4, 8])],
    ids=["logs", "save", "export"],
)
def test_a_full_disk(room, undisturbed, tiny_config, moment, left, every, message, saved):
    config = tiny_config(FIELDS | {"checkpoint.every": every})
    with before(moment, lambda: room.take(left)), pytest.raises(UserError, match=message) as error:
        run(config, room.workdir)
    room.give()
    assert "\n" not in str(error.value)
    assert Checkpoints(room.workdir).steps() == saved
    run(config, room.workdir)
    assert_same_run(room.workdir, undisturbed)
    unfinished = [path.name for path in (room.workdir / "checkpoints").iterdir() if not path.name.isdigit()]
    assert not unfinished, "what the failed save had written is gone"


def test_the_command_says_it_in_one_line(command, tiny_config, tmp_path, monkeypatch, repo):
    """Orbax and its threads keep quiet."""
    monkeypatch.chdir(repo)
    room = LargestFile(tmp_path)
    config = tiny_config({"stages": ("seqkd",), "data.heldout": "", "checkpoint.every": 1})
    (tmp_path / "config.py").write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    try:
        with before(2, lambda: room.take(20_000)):
            finished = command("gadjax.train", f"--config={tmp_path / 'config.py'}", f"--workdir={room.workdir}")
    finally:
        room.give()
    assert finished.status == 2
    (line,) = finished.err.splitlines()
    assert line.startswith(f"error: {room.workdir / 'checkpoints'}: a checkpoint cannot be written (File too large)")
    assert Checkpoints(room.workdir).steps() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("room", ["a disk"], indirect=True)
def test_a_disk_that_nobody_may_write_to(room, tiny_config):
    subprocess.run(["mount", "-o", "remount,ro", str(room.workdir.parent)], check=True)
    with pytest.raises(UserError, match=r"--workdir .*/run cannot be written: Read-only file system"):
        run(tiny_config(), room.workdir)
