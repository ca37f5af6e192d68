"""Figures in files: they come back as they were, only for the same program, and only if the file is whole."""

from __future__ import annotations

import types

import jax
import pytest

from gadjax.planning import kept
from gadjax.planning.kept import KeptFigures
from gadjax.planning.measured import Measured, Traffic
from gadjax.planning.targets import parse_topology

pytestmark = pytest.mark.quick

TARGET = parse_topology("cpu:8")
PROGRAM = types.SimpleNamespace(identity=("module", [0, 1], 64, [("token_steps", 3)], (256, [1, 8])))
COMPILED = Measured(
    program=123_456_789,
    moved=987,
    collectives=(Traffic("all-reduce", 16, 3, True, "psum"), Traffic("all-gather", 8, 1, False, "")),
    positions=5,
    largest=(("f32[2,2]", 16, 'jit(f)/"dot"'), ("s32[]", 4, "")),
    compile_seconds=0.1 + 0.2,
)
REFUSED = Measured(program=2**40, largest=(("f32[2]", 8, "x"),), failure="RESOURCE_EXHAUSTED: Used 1024.0G of 31.2G")


def opened(folder):
    return KeptFigures(folder, TARGET, jax.devices())


@pytest.mark.parametrize("figures", [COMPILED, REFUSED], ids=["compiled", "refused"])
def test_figures_come_back_as_they_were(tmp_path, figures):
    first = opened(tmp_path / "a" / "b")
    key = first.key(PROGRAM)
    assert first.find(key) is None
    first.keep(key, figures)
    second = opened(tmp_path / "a" / "b")
    assert second.key(PROGRAM) == key and second.find(key) == figures
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [key]


def test_without_a_folder_nothing_is_kept():
    none = opened(None)
    none.keep(none.key(PROGRAM), COMPILED)
    assert none.find(none.key(PROGRAM)) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"123456789", b"123456780"),
        lambda content: content + b" ",
        lambda content: b"\xff\xfe" + content,
    ],
    ids=["empty", "cut", "another digit", "longer", "not text"],
)
def test_a_damaged_file_is_as_none(tmp_path, damage):
    figures = opened(tmp_path)
    key = figures.key(PROGRAM)
    figures.keep(key, COMPILED)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert figures.find(key) is None
    figures.keep(key, COMPILED)
    assert figures.find(key) == COMPILED


@pytest.mark.parametrize("part", range(len(PROGRAM.identity)))
def test_another_program_has_another_key(tmp_path, part):
    other = [*PROGRAM.identity]
    other[part] = "other"
    figures = opened(tmp_path)
    assert figures.key(types.SimpleNamespace(identity=tuple(other))) != figures.key(PROGRAM)


def test_what_else_a_compiler_reads_is_in_the_key(tmp_path, monkeypatch):
    keys = [opened(tmp_path).key(PROGRAM)]
    keys += [KeptFigures(tmp_path, parse_topology("cpu:4"), jax.devices()).key(PROGRAM)]
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "--xla_of_another_kind=true")
            keys += [opened(tmp_path).key(PROGRAM)]
    with monkeypatch.context() as patch:
        patch.setattr(kept, "_versions", lambda: {"jaxlib": "0.0.1"})
        keys += [opened(tmp_path).key(PROGRAM)]
    with monkeypatch.context() as patch:  # the code that reads a compiled program
        patch.setattr(kept.inspect, "getsource", lambda module: "# another version")
        keys += [opened(tmp_path).key(PROGRAM)]
    optimizations = "jax_disable_most_optimizations"
    before = jax.config.values[optimizations]
    jax.config.update(optimizations, not before)
    try:
        keys += [opened(tmp_path).key(PROGRAM)]
    finally:
        jax.config.update(optimizations, before)
    assert len(set(keys)) == len(keys)
    monkeypatch.setenv("ANOTHER_PROGRAMS_VARIABLE", "1")
    assert opened(tmp_path).key(PROGRAM) == keys[0]


def test_versions_are_of_the_compilers():
    assert {"jax", "jaxlib"} <= set(kept._versions()) and "pytest" not in kept._versions()
