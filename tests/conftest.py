"""What every test has: eight virtual CPU devices, so that sharding is never switched off, and `support`'s fixtures."""

from __future__ import annotations

import gc
import os
import pathlib
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests.support.environment import set_xla_flags, share_compiled_programs

set_xla_flags(devices=8)  # XLA reads them once, when JAX first asks for a device

pytest_plugins = (
    "tests.support.commands",
    "tests.support.compiling",
    "tests.support.finished_runs",
    "tests.support.teachers",  # whose words the students know
    "tests.support.students",
    "tests.support.transformers",
)
ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    share_compiled_programs(config)
    gc.set_threshold(10_000, 10, 20)  # by default, a sixteenth of the time would go to looking for garbage


def pytest_collection_finish() -> None:
    """What is imported by now stays, so that nobody looks for garbage in it."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers get neighbouring tests, which share fixtures, and take over what another has left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session")
def repo() -> pathlib.Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data beside the repository; tests that need it skip where it is absent."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip(f"no real data at {path}")
    return path
