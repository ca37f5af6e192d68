"""Whether two workdirs hold the same run."""

from __future__ import annotations

import pathlib

from gadjax.metrics import read_metrics


def assert_same_run(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """To the last digit of every figure, times aside, and to the last bit of the exported weights."""

    def lines(folder: pathlib.Path) -> list[dict]:
        untimed = lambda name: not name.startswith(("seconds/", "speed/"))  # noqa: E731
        records = read_metrics(folder / "metrics.jsonl")
        return [{name: value for name, value in line.items() if untimed(name)} for line in records]

    assert lines(workdir) == lines(other)
    exports = [path.relative_to(other) for path in sorted(other.glob("export/*/model.safetensors"))]
    assert exports
    for weights in exports:
        assert (workdir / weights).read_bytes() == (other / weights).read_bytes()
