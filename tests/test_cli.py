"""The command `gadjax`: subcommands with the flags of `python -m`, quick help, one line for a mistake."""

from __future__ import annotations

import importlib.util
import resource
import runpy
import subprocess
import sys

import pytest

import gadjax
from gadjax import cli
from gadjax.cli import COMMANDS

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def in_repository(repo, monkeypatch):
    monkeypatch.chdir(repo)


def gadjax_command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gadjax", *arguments], capture_output=True, text=True
    )


def test_help_names_every_command_and_imports_nothing_of_weight():
    """Processor time is measured, since other work may share the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = gadjax_command("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert finished.returncode == 0
    assert all(f"\n  {name} " in finished.stdout for name in COMMANDS)
    assert max(map(len, finished.stdout.splitlines())) <= 100
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "gadjax.cli" in imported
    assert not {"absl", "numpy", "jax", "ml_collections", "pydantic"} & imported


@pytest.mark.parametrize("arguments", [(), ("-h",), ("help",)])
def test_other_ways_to_ask_for_help(command, arguments):
    assert command("gadjax", *arguments).out == command("gadjax", "--help").out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_has_help(command, name):
    """Its own, with the exit status of success."""
    assert importlib.util.find_spec(f"gadjax.{name}")
    told = command("gadjax", name, "--help")
    assert told.status == 0, told.err
    alone = command(f"gadjax.{name}", "--help")
    assert told.out == alone.out and len(told.out) > 300


def test_version(command):
    assert command("gadjax", "--version").out == f"gadjax {gadjax.__version__}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trai", "error: gadjax has no command 'trai'; did you mean train? The commands are collect, config, plan, "),
        ("nothing", "error: gadjax has no command 'nothing'. The commands are collect, config, plan, "),
        (
            "--config=demo",
            "error: --config=demo: the command comes first, such as gadjax train --config=demo; gadjax --",
        ),
    ],
)
def test_an_unknown_command(command, name, message):
    told = command("gadjax", name)
    assert told.status == 2 and told.err.startswith(message) and len(told.err.splitlines()) == 1


def test_flags_reach_the_command(command, monkeypatch):
    from gadjax.trainer import session

    seen = []
    train = lambda config, workdir, *rest, **more: seen.append((config.batch_size, str(workdir)))  # noqa: E731
    monkeypatch.setattr(session, "train_and_export", train)
    for form in (("--config=demo",), ("--config", "demo"), ("--config=configs/demo.py",)):
        assert command("gadjax", "train", *form, "--config.batch_size=3").status == 0
    assert seen == [(3, "runs/demo")] * 3


def test_a_command_s_error_is_one_line(command):
    told = command("gadjax", "train", "--config=demo", "--config.student=")
    assert told.status == 2 and told.err.startswith("error: config.student is empty")
    assert len(told.err.splitlines()) == 1


class TestConfig:
    def test_lists_the_names(self, command):
        lines = command("gadjax", "config").out.splitlines()
        assert [line.split()[0] for line in lines][:2] == ["base", "demo"]

    def test_prints_a_file(self, command, repo):
        assert command("gadjax", "config", "qwen7b").out == (repo / "configs" / "qwen7b.py").read_text()

    def test_describes_the_fields(self, command, repo):
        assert command("gadjax", "config", "--fields").out == (repo / "docs" / "config.md").read_text()

    def test_an_unknown_name(self, command):
        told = command("gadjax", "config", "dem")
        assert told.status == 2 and told.err.startswith("error: dem: gadjax ships no config of this name; did you mean")
        assert command("gadjax", "config", "demo", "--fields").status == 2


def test_a_config_may_import_what_lies_beside_it(tmp_path, monkeypatch):
    """An installed script has its own folder on sys.path, where python -m has the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "argv", ["gadjax", "train"])
    found: list[str] = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: found.extend([name, sys.path[0]]))
    cli._run()
    assert found == ["gadjax.train", str(tmp_path)]
