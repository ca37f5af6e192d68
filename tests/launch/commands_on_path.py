"""Stand-ins for commands of a cluster that a launch file calls, and launch files with a user's own lines."""

from __future__ import annotations

import pathlib
import re
import sys


def write_command(folder: pathlib.Path, name: str, code: str) -> pathlib.Path:
    """Writes a command in Python."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{code}")
    file.chmod(0o755)
    return file


def with_lines(source: pathlib.Path, copy: pathlib.Path, **lines: str) -> pathlib.Path:
    """Copies a shell script with other values of its variables; a value in parentheses is an array."""
    text = source.read_text()
    for name, value in lines.items():
        pattern = rf"^{name}=(\(.*?^\)|[^\n]*)$"
        text, count = re.subn(pattern, lambda _, line=f"{name}={value}": line, text, flags=re.M | re.S)
        assert count == 1, f"{source} sets {name} {count} times"
    copy.write_text(text)
    return copy
