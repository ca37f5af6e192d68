"""Which steps are traced, and that a trace is whole however the run ends."""

from __future__ import annotations

import gzip

import jax
import jax.numpy as jnp
import pytest

from gadjax.errors import UserError
from gadjax.trainer.profile import Profile, parse_steps


@pytest.mark.parametrize(("text", "steps"), [("12", (12, 12)), ("10-12", (10, 12)), ("1-1", (1, 1))])
def test_steps(text, steps):
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["0", "5-3", "a", "1:2", "-1", "3-"])
def test_no_steps(text):
    with pytest.raises(UserError, match=rf"--profile={text} names no steps: give one, such as --profile=12"):
        parse_steps(text)


@pytest.fixture
def calls(monkeypatch):
    """What the profiler was asked, without its traces."""
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: seen.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    return seen


def test_the_steps_between_are_traced(calls, tmp_path):
    profile = Profile(tmp_path, 2, 3)
    for number in range(1, 6):
        with profile.step(number):
            calls.append(number)
    profile.close()
    assert calls == [1, "start", 2, 3, "stop", 4, 5]


def test_a_run_that_resumes_inside_traces_the_rest(calls, tmp_path):
    with Profile(tmp_path, 2, 3).step(3):
        calls.append(3)
    assert calls == ["start", 3, "stop"]


def test_a_step_that_fails_and_a_run_that_ends_leave_a_whole_trace(calls, tmp_path):
    profile = Profile(tmp_path, 1, 9)
    with pytest.raises(ZeroDivisionError), profile.step(1):
        raise ZeroDivisionError
    with profile.step(2):
        pass
    profile.close()
    assert calls == ["start", "stop", "start", "stop"]


def test_the_trace_names_the_steps(tmp_path):
    profile = Profile(tmp_path / "profile", 1, 1)
    with profile.step(1):
        jnp.dot(jnp.ones((64, 64)), jnp.ones((64, 64))).block_until_ready()
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    assert '"step"' in gzip.decompress(trace.read_bytes()).decode()
