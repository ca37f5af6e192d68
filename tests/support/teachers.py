"""Fixtures that write a teacher's answers: sums of two digits, in words."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="session")
def write_teacher() -> Callable[[pathlib.Path, list[str], list[str]], pathlib.Path]:
    """Writes prompts and the teacher's answers as Parquet."""

    def write(path: pathlib.Path, prompts: list[str], answers: list[str]) -> pathlib.Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        columns = {"content": pa.array(chats, kind), "teacher_response": pa.array(answers, pa.string())}
        pq.write_table(pa.table(columns), path)
        return path

    return write


def _sums(numbers: range) -> tuple[list[str], list[str]]:
    pairs = [(n // 10, n % 10) for n in numbers]
    prompts = [f"What is {WORDS[a]} plus {WORDS[b]}" for a, b in pairs]
    return prompts, [" ".join(WORDS[int(digit)] for digit in str(a + b)) for a, b in pairs]


@pytest.fixture(scope="session")
def train_file(tmp_path_factory, write_teacher) -> pathlib.Path:
    """Teacher answers to 24 prompts."""
    return write_teacher(tmp_path_factory.mktemp("data") / "train.parquet", *_sums(range(24)))


@pytest.fixture(scope="session")
def heldout_file(tmp_path_factory, write_teacher) -> pathlib.Path:
    """Teacher answers to 8 other prompts."""
    return write_teacher(tmp_path_factory.mktemp("data") / "heldout.parquet", *_sums(range(40, 48)))
