"""Writes a benchmark's results: one table for people, one JSON for programs."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
_PACKAGES = ("gadjax", "jax", "jaxlib", "flax", "numpy")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    pad = lambda i, cell: cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i])  # noqa: E731
    return "\n".join("  ".join(pad(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)


def write(path: pathlib.Path, results: Mapping[str, Any], peer: Mapping[str, str] | None = None) -> None:
    """Writes the JSON: results, and their origin (command, commit, versions, machine, load).

    Args:
      results: JSON values, or dataclasses of them.
      peer: versions of the peer's packages.
    """
    origin = {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": commit(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "peer": dict(peer or {}),
        "machine": machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"origin": origin, "results": results}, indent=2, default=dataclasses.asdict)
    path.write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, and the load per core (1: busy)."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The repository's commit, with "+changes" if files differ from it; "unknown" outside of a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else pathlib.Path(sys.argv[0]).stem


def _processor() -> str:
    """The kernel's name of the processor, because `platform.processor` is often empty."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
