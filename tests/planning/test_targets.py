"""Names of machines, and the errors for unknown ones."""

from __future__ import annotations

import pytest

from gadjax.errors import UserError
from gadjax.parallel.chips import CHIPS
from gadjax.planning import targets
from gadjax.planning.targets import parse_topology

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("name", "chip", "count"),
    [
        ("v5p:2x4x4", "v5p", 32),
        ("v6e:8x8", "v6e", 64),
        ("h100:2x8", "h100", 16),
        ("l4:1", "l4", 1),
        ("cpu:8", "cpu", 8),
    ],
)
def test_names(name, chip, count):
    target = parse_topology(name)
    assert (target.chip.name, target.count, target.name) == (chip, count, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", r"--topology=v9:2x2 is not known: write CHIP:SHAPE.*chips are v5p"),
        ("h100", r"--topology=h100 is not known"),
        ("h100:0x8", r"--topology=h100:0x8 is not known"),
        ("v5p:4x4", r"v5p:4x4 has 2 dimensions: write it like v5p:2x4x4"),
        ("h100:2x8x1", r"h100:2x8x1 has 3 dimensions: write it like h100:2x8"),
        ("cpu:2x4", r"cpu:2x4 has 2 dimensions: write it like cpu:8"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(UserError, match=message):
        parse_topology(name)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = RuntimeError("no plugin")
    assert "pip install 'gadjax[plan]'" in targets._why_not(parse_topology("v6e:2x2"), error)
    assert "pip install 'jax[cuda13]'" in targets._why_not(parse_topology("h100:8"), error)


def test_figures_are_of_one_order():
    """Compute, memory, links and network are in decreasing order, and the reserve is a small part of the memory."""
    for chip in CHIPS.values():
        assert chip.flops > chip.bandwidth > chip.link >= chip.network
        assert chip.reserve < 0.2 * chip.memory


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.platform == "cuda"])
def test_every_gpu_is_described(name):
    text = targets.gpu_config(CHIPS[name])
    major, minor = CHIPS[name].capability
    assert f"major: {major} minor: {minor}" in text and f"device_memory_size: {int(CHIPS[name].memory)}" in text


def test_a_description_holds_what_the_compiler_is_told(monkeypatch):
    names = ("h100:1x8", "h100:2x8", "h200:1x8", "v6e:2x2", "v6e:2x4", "cpu:8")
    described = {name: targets.described(parse_topology(name)) for name in names}
    assert len(set(described.values())) == len(names)
    assert all(text.startswith(f"{name}\n") for name, text in described.items())
    assert targets.gpu_config(CHIPS["h200"]) in described["h200:1x8"]
    assert targets.described(parse_topology("cpu:8")) == described["cpu:8"]
    monkeypatch.setattr(targets.os, "sched_getaffinity", lambda process: set(range(1000)))
    assert targets.described(parse_topology("cpu:8")) != described["cpu:8"]
