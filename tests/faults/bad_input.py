"""What a bad input of the corpus is, and the place in which its files are made."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
CHAT = pa.list_(TURN)
USER = {"role": "user", "content": "What is one plus two"}


@dataclasses.dataclass(frozen=True)
class BadInput:
    """One input that a command must refuse.

    Attributes:
      name: of the test.
      message: regular expression of the one line on stderr.
      arguments: makes the input's files and gives the command's module and arguments.
    """

    name: str
    message: str
    arguments: Callable[[Place], list[str]]


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder for one input's files, and good files to damage.

    Attributes:
      folder: empty.
      config: a config file of a run that could begin: a student without weights, 24 rows.
      student: its student's directory.
      weights: the same student with weights.
      train: its Parquet.
      repository: its root.
    """

    folder: pathlib.Path
    config: pathlib.Path
    student: pathlib.Path
    weights: pathlib.Path
    train: pathlib.Path
    repository: pathlib.Path

    def run(self, *arguments: Any, **fields: Any) -> list[str]:
        """Training with some fields of the config changed; "__" stands for the dots of a field."""
        given = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
        return ["gadjax.train", f"--config={self.config}", *given, f"--workdir={self.folder / 'run'}", *arguments]

    def command(self, name: str, *more: Any, **flags: Any) -> list[str]:
        """Another command, with good flags where none is given."""
        good = {
            "generate": {"model": self.weights, "prompts": self.train, "out": self.folder / "o.jsonl"},
            "score": {"model": self.weights, "data": self.train, "out": self.folder / "o.jsonl"},
            "collect": {"model": "m", "prompts": self.train, "out": self.folder / "o.parquet"},
            "evaluate": {"models": "a=api:m", "sets": f"v={self.train}", "out": self.folder / "o"},
            "export": {"workdir": self.folder / "run", "out": self.folder / "o"},
            "plan": {"config": self.config, "topology": "cpu:8"},
            "chat": {"model": self.weights},
        }[name]
        return [f"gadjax.{name}", *(f"--{flag}={value}" for flag, value in (good | flags).items()), *more]

    def parquet(self, content: Any = None, answers: Any = None, **columns: Any) -> pathlib.Path:
        """`bad.parquet` of chats and answers, one good row where none are given."""
        content = pa.array([[USER]] if content is None else content, CHAT) if not _is_arrow(content) else content
        answers = pa.array(["three"] * len(content), pa.string()) if answers is None else answers
        return self.table(pa.table({"content": content, "teacher_response": answers, **columns}))

    def table(self, table: pa.Table) -> pathlib.Path:
        """`bad.parquet` of any columns."""
        pq.write_table(table, self.folder / "bad.parquet")
        return self.folder / "bad.parquet"

    def file(self, name: str, content: str | bytes) -> pathlib.Path:
        """A file of the folder."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def model(
        self,
        config: Callable[[dict[str, Any]], Any] | None = None,
        weights: bool = False,
        tokenizer: Callable[[dict[str, Any]], Any] | None = None,
        **files: str | bytes | None,
    ) -> pathlib.Path:
        """A copy of the student, spoilt.

        Args:
          config: changes config.json's fields in place.
          weights: whether it has any.
          tokenizer: changes tokenizer_config.json's fields in place.
          **files: contents by name, in which "__" stands for a dot; None takes the file away.
        """
        directory = self.folder / "bad_model"
        shutil.copytree(self.weights if weights else self.student, directory)
        for name, change in (("config.json", config), ("tokenizer_config.json", tokenizer)):
            if change:
                fields = json.loads((directory / name).read_text())
                change(fields)
                (directory / name).write_text(json.dumps(fields))
        for name, content in files.items():
            path = directory / name.replace("__", ".")
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return directory


def _is_arrow(value: Any) -> bool:
    return isinstance(value, pa.Array | pa.ChunkedArray)
