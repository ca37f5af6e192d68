"""The check that gadjax.train takes the arguments that a launch file gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def train_takes(command, monkeypatch) -> Callable[[list[str]], Any]:
    """Runs the real command up to where training begins; gives its config, workdir and what joins the processes."""
    from gadjax.parallel import processes
    from gadjax.trainer import session

    calls: dict[str, Any] = {}
    monkeypatch.setattr(processes, "start", lambda *arguments: calls.update(processes=arguments))
    monkeypatch.setattr(
        session,
        "train_and_export",
        lambda config, workdir, *_, **__: calls.update(config=config, workdir=str(workdir)),
    )

    def check(arguments: list[str]) -> dict[str, Any]:
        assert arguments[:2] == ["-m", "gadjax.train"]
        calls.clear()
        told = command("gadjax.train", *arguments[2:])
        assert told.status == 0, told.err
        return calls

    return check
