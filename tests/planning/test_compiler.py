"""What is compiled, how much of it at once, and that no figure depends on either."""

from __future__ import annotations

import dataclasses
import threading

import jax
import pytest

from gadjax.errors import UserError
from gadjax.planning import compiler
from gadjax.planning.compiler import Compiler, most_at_once
from gadjax.planning.measured import Measured
from gadjax.planning.planner import checked, make_blueprint
from gadjax.planning.run_programs import run_programs
from gadjax.planning.targets import parse_topology

TARGET = parse_topology("cpu:8")
FIELDS = {"stages": ("gad",), "data.heldout": ""}
NAMES = ["weights for sampling", "reference", "policy update"]


@pytest.fixture(autouse=True)
def _as_the_command_lowers(quick_compile, all_devices):
    """A program's text holds no lines of source files, as `targets.prepare_process` has it."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    yield
    jax.config.update("jax_traceback_in_locations_limit", before)


@pytest.fixture
def lay_out(tiny_config, small_student):
    """Makes a run's programs of some names, in the run's order."""

    def run(names, fields=()):
        config = checked(tiny_config(FIELDS | {"student": str(small_student)} | dict(fields)))
        return [program for program in run_programs(make_blueprint(config, jax.devices())) if program.name in names]

    return run


@pytest.fixture
def programs(lay_out):
    """Two programs that are lowered soon."""
    return lay_out(NAMES[:2])


@pytest.fixture
def measuring(monkeypatch):
    """Replaces the compilation of a program by a function of its name."""

    def replace(function):
        monkeypatch.setattr(compiler, "measure", lambda given: function(given.program.name))

    return replace


def figures(programs):
    """All that a plan prints of programs, but how long compiling took."""
    return [dataclasses.replace(each, compile_seconds=0.0) for each in programs]


def test_figures_do_not_depend_on_what_is_kept_nor_on_how_many_are_compiled_at_once(lay_out, tmp_path):
    def compiled(fields=(), **settings):
        names = []
        made = Compiler(TARGET, jax.devices(), on_compile=names.append, **settings)
        return made.compile(lay_out(NAMES, fields)), names, made

    alone, names, made = compiled(at_once=1)
    assert names == NAMES and (made.found, made.asked) == (0, 3)
    several, names, made = compiled({"gad.kl_coefficient": 0.125}, at_once=3, folder=tmp_path / "plans")
    assert sorted(names) == sorted(NAMES) and made.found == 0
    # The changed field is in one program's text.
    again, names, made = compiled(folder=tmp_path / "plans")
    assert names == ["policy update"] and (made.found, made.asked, made.lost) == (2, 3, "")
    assert figures(again) == figures(alone) and again[:2] == several[:2]


def test_programs_alike_are_compiled_once(programs):
    names = []
    made = Compiler(TARGET, jax.devices(), on_compile=names.append)
    twin = dataclasses.replace(programs[0], name="twin")
    one, other = made.compile([programs[0], twin])
    assert names == ["weights for sampling"] and one == other
    assert made.compile([twin]) == [one] and len(names) == 1  # for the next plan of a search too
    assert (made.found, made.asked) == (0, 3)


def test_as_many_at_once_as_are_allowed(programs, measuring):
    running, most, lock, all_here = 0, 0, threading.Lock(), threading.Barrier(2)

    def measured(name):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if two:
            all_here.wait(timeout=60)  # fails unless another program is compiled meanwhile
        with lock:
            running -= 1
        return Measured(program=1)

    measuring(measured)
    for two in (True, False):
        most = 0
        Compiler(TARGET, jax.devices(), at_once=1 + two).compile(programs)
        assert most == 1 + two


def test_an_error_stops_the_rest_and_loses_nothing(programs, measuring, tmp_path):
    started = []

    def measured(name):
        started.append(name)
        if name == "reference":
            raise UserError("the reference does not compile")
        return Measured(program=1)

    measuring(measured)
    third = dataclasses.replace(programs[0], loop_trips={"another loop": 2})
    with pytest.raises(UserError, match="the reference does not compile"):
        Compiler(TARGET, jax.devices(), folder=tmp_path, at_once=1).compile([*programs, third])
    assert started == ["weights for sampling", "reference"]
    again = Compiler(TARGET, jax.devices(), folder=tmp_path)
    again.compile(programs[:1])
    assert again.found == 1


def test_a_folder_that_cannot_be_written_costs_no_plan(programs, measuring, tmp_path):
    (tmp_path / "file").touch()
    measuring(lambda name: Measured(program=7))
    made = Compiler(TARGET, jax.devices(), folder=tmp_path / "file" / "plans")
    (found,) = made.compile(programs[:1])
    assert found.program == 7 and made.lost == "Not a directory"


def test_at_once_is_bounded_by_cores_and_memory(monkeypatch):
    for cores, memory, allowed in ((8, 2**40, 8), (8, 9 * 2**30, 2), (8, 2**30, 1), (1, 2**40, 1)):
        monkeypatch.setattr(compiler.os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        monkeypatch.setattr(compiler, "host_memory", lambda memory=memory: memory)
        assert most_at_once() == allowed
