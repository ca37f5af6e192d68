"""The command line: one clear line for each mistake, exit status 2, quick help."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import resource
import subprocess
import sys

import jax
import pytest

from gadjax import commands
from gadjax.errors import UserError, run_command

CONFIG = "--config=configs/base.py"
COMMANDS = ("generate", "chat", "export", "score", "collect", "evaluate")  # all but train


@pytest.fixture(autouse=True)
def in_repository(repo, monkeypatch):
    monkeypatch.chdir(repo)


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=dict(os.environ))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no config: give --config=demo"),
        (["--config=configs/nowhere.py"], "--config cannot be read: .*No such file or directory: 'configs/nowhere.py'"),
        (["--config=configs/nowhere.py", "--config.seed=1"], "--config cannot be read: .*'configs/nowhere.py'"),
        (["--config=configs"], r"--config=configs: gadjax ships no config of this name\. There are base, demo, "),
        (["--config", "qwen14"], r"--config=qwen14: .*; did you mean qwen14b\? There are "),
        (["--config=somewhere/demo.py"], r"'somewhere/demo\.py'; the shipped one is --config=demo$"),
        (["--config=configs/"], "--config cannot be read: .*configs"),
        ([CONFIG, "--config.batchsize=8"], r"a --config\.FIELD is not in the config: .*batchsize"),
        ([CONFIG, "--config.gad.lr=8"], r"a --config\.FIELD is not in the config: .*lr"),
        ([CONFIG, "--config.batch_size=many"], r"--config\.batch_size=many"),
        ([CONFIG, "--config.random_init=maybe"], r"--config\.random_init=maybe"),
        ([CONFIG, "--config.gad.clip=wide"], r"--config\.gad\.clip=wide"),
        ([CONFIG, "--config.gad=1"], r"config\.gad"),
        ([CONFIG, "--work=x"], "Unknown command line flag 'work'.*--help"),
        ([CONFIG, "train.parquet"], "unexpected argument 'train.parquet'"),
        ([CONFIG], r"config\.student is empty: .*--config\.student=PATH"),
        ([CONFIG, "--config.student=s"], r"config\.data\.train is empty: .*--config\.data\.train=PATH"),
        ([CONFIG, "--config.student=s", "--config.data.train=t", "--config.stages=gad,seqkd"], "the order is"),
    ],
)
def test_a_mistake_is_one_line(command, tmp_path, arguments, message):
    finished = command("gadjax.train", *arguments, f"--workdir={tmp_path / 'run'}")
    assert finished.status == 2
    errors = finished.err.splitlines()
    assert len(errors) == 1, finished.err
    assert errors[0].startswith("error: ")
    assert re.search(message, errors[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["--config={}", "--config {}"])
def test_a_mistake_in_the_file_keeps_its_traceback(command, tmp_path, form):
    (tmp_path / "broken.py").write_text("def get_config():\n    return {}['absent']\n")
    with pytest.raises(KeyError, match="absent"):
        command("gadjax.train", *form.format(tmp_path / "broken.py").split(" "))


def test_help_is_quick_and_light():
    """Measures processor time, because other work may share the machine; on an idle one the clock shows no more."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = python("-X", "importtime", "-m", "gadjax.train", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Distils a student" in finished.stdout
    assert "--workdir" in finished.stdout and "--config" in finished.stdout
    assert "- `gad.clip` (a number, above 0; default 0.2): " in finished.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "ml_collections" in imported
    assert not {"torch", "tensorflow", "transformers", "jax"} & imported


def test_imports_are_light():
    finished = python("-c", "import sys, gadjax, gadjax.train; print(*sys.modules)")
    assert finished.returncode == 0, finished.stderr
    assert not {"torch", "tensorflow"} & set(finished.stdout.split())


def test_commands_can_be_imported_together():
    """The commands' modules are the Python API too, and several define flags of the same name."""
    modules = ", ".join(f"gadjax.{name}" for name in ("train", *COMMANDS))
    finished = python("-c", f"import {modules}\nfrom absl import flags\nprint('workdir' in flags.FLAGS)")
    assert (finished.returncode, finished.stdout) == (0, "False\n"), finished.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_flags(name):
    finished = python("-m", f"gadjax.{name}", "--help")
    assert "--model" in finished.stdout or "--workdir" in finished.stdout, finished.stderr


def test_loggers_are_quiet(command):
    """openai 3 and huggingface_hub 2 log every request under the name httpx2, earlier versions under httpx."""
    logging.getLogger("httpx2").setLevel(logging.INFO)
    command("gadjax.chat")
    assert {logging.getLogger(name).level for name in ("httpx", "httpx2")} == {logging.ERROR}


def test_only_orbax_is_muted():
    """Errors of other libraries are shown. Only gadjax.train, which saves in asyncio tasks, mutes asyncio too."""
    code = (
        "import logging, sys\nfrom gadjax import commands\nsys.argv = ['x', '--nosuch']\n"
        "try:\n    commands.run(None)\nexcept SystemExit:\n    pass\n"
        "print(*(logging.getLogger(name).isEnabledFor(logging.ERROR) for name in ('other', 'asyncio', 'absl')))\n"
    )
    finished = python("-c", code)
    assert finished.stdout == "True True False\n", finished.stderr


def test_home_in_paths(command, tmp_path, monkeypatch):
    from gadjax.trainer import session

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("from gadjax.config import default_config as get_config\n")
    seen = []
    monkeypatch.setattr(session, "train_and_export", lambda config, workdir, *rest, **more: seen.append(workdir))
    assert command("gadjax.train", "--config=~/mine.py", "--workdir=~/run").status == 0
    assert seen == [tmp_path / "run"]
    done = command("gadjax.export", "--workdir=~/run", "--out=~/out")
    assert done.err == f"error: --workdir {tmp_path / 'run'} is not the workdir of a run: no config.json\n"
    done = command("gadjax.score", "--model=~/m", "--data=~/absent.jsonl", "--out=~/s.jsonl")
    assert done.err == f"error: --data={tmp_path / 'absent.jsonl'}: no such file\n"
    with commands.jsonl_output("~/out.jsonl") as write:
        write({})
    assert (tmp_path / "out.jsonl").exists()


def test_a_real_process(tmp_path):
    finished = python("-m", "gadjax.train", CONFIG, "--config.batchsize=8", f"--workdir={tmp_path / 'run'}")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: a --config.FIELD is not in the config")
    assert len(finished.stderr.splitlines()) == 1
    assert finished.stdout == ""


def test_help_into_a_closed_pipe_is_no_error_of_the_config():
    shell = f"{sys.executable} -m gadjax.train --help | true"
    finished = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert "error" not in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_its_missing_flags(command, name):
    finished = command(f"gadjax.{name}")
    assert finished.status == 2
    assert "must have a value" in finished.err
    assert len(finished.err.splitlines()) == 1


def test_config_name(command, tmp_path, monkeypatch):
    """Without --workdir, a run goes to runs/NAME."""
    from gadjax.trainer import session

    seen = []
    train = lambda config, workdir, *rest, **more: seen.append((config.batch_size, workdir))  # noqa: E731
    monkeypatch.setattr(session, "train_and_export", train)
    assert command("gadjax.train", "--config=configs/qwen7b.py", "--config.batch_size=3").status == 0
    assert seen == [(3, pathlib.Path("runs/qwen7b"))]


def test_output_is_whole_or_absent(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(ZeroDivisionError), commands.jsonl_output(out) as write:
        write({"a": 1})
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    with commands.jsonl_output(out) as write:
        write({"text": "é\n"})
        write({})
        assert not out.exists()
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [{"text": "é\n"}, {}]
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_is_one_line(tmp_path):
    full = pathlib.Path("/dev/full")  # a device that is always full
    if not full.exists():
        pytest.skip(f"no {full} here")
    (tmp_path / "o.jsonl.partial").symlink_to(full)
    refused = pytest.raises(UserError, match=r"--out=.*o\.jsonl cannot be written: No space left")
    with refused, commands.jsonl_output(tmp_path / "o.jsonl") as write:
        write({})
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(tmp_path):
    for place in (tmp_path / "absent" / "out.jsonl", tmp_path):
        with pytest.raises(UserError, match=f"--out={place} cannot be written: "), commands.jsonl_output(place):
            raise AssertionError("must not get here")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("it"), 2, "error: it\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("saved"), 130, "saved\n"),
    ],
)
def test_exit_status(capsys, error, status, message):
    def fail():
        raise error

    with pytest.raises(SystemExit) as exit:
        run_command(fail)
    assert exit.value.code == status
    assert capsys.readouterr().err == message


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize(("limit", "share"), [("max", 1), (str(8 * 2**30), None), (str(2**60), 1), (None, 1)])
def test_memory_that_waiting_state_may_take(tmp_path, monkeypatch, limit, share):
    """The limit is three quarters of the machine's memory, or of the container's if that is less."""
    for name in (device := "XLA_PYTHON_CLIENT_MEM_FRACTION", host := "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"):
        monkeypatch.delenv(name, raising=False)
    if limit:
        (tmp_path / "memory.max").write_text(limit + "\n")
    monkeypatch.setattr(commands, "_CONTAINER_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**25}.__getitem__)  # 128 GiB
    commands.use_whole_memory()
    assert os.environ[host] == ("96" if share else "6")
    assert os.environ[device] == "0.97"
    monkeypatch.setenv(host, "7")
    commands.use_whole_memory()
    assert os.environ[host] == "7"


def test_without_a_home_folder_nothing_is_kept_and_one_line_says_so(monkeypatch, capsys):
    """As in a container under the id of a user that it does not know."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    updated = {}
    monkeypatch.setattr(jax.config, "update", updated.__setitem__)
    monkeypatch.setattr(pathlib.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    commands.use_compilation_cache()
    assert "jax_compilation_cache_dir" not in updated and capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    commands.use_compilation_cache()
    assert updated["jax_compilation_cache_dir"] == "/caches/gadjax/xla" and capsys.readouterr().err == ""
