"""The state of batches under way, on disk beside the ledger, so that a kill at any moment loses nothing.

OUT.batches.json lists the batches, each with the step that it has surely reached. OUT.batches/NAME.jsonl holds a
batch's requests and their questions, so that answers find their rows even if the file of prompts has changed. The lock
of the ledger protects both.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gadjax.errors import UserError
from gadjax.files import replace
from gadjax.teacher.ledger import Key
from gadjax.teacher.usage import NOTHING, Usage

_FORMAT = 1

# The steps of a batch.
PLANNED = "planned"  # its requests are on disk
UPLOADED = "uploaded"  # the API has its file
CREATING = "creating"  # the API may have created it
CREATED = "created"  # its id is known


class Request(NamedTuple):
    """One request of a batch."""

    key: Key
    question: dict[str, Any]  # question's fields of the answer's row
    body: dict[str, Any]
    most: Usage


@dataclasses.dataclass
class Batch:
    """One batch that is under way."""

    name: str  # random; the file's name and the batch's metadata hold it, so that both can be found again
    requests: int  # number of its requests
    most: Usage  # upper bound on the tokens of all of them
    base_url: str
    step: str = PLANNED
    file_id: str | None = None
    batch_id: str | None = None

    def custom_id(self, number: int) -> str:
        """The id of request `number`, from 0, which its result quotes."""
        return f"{self.name}-{number}"


class Batches:
    """The batches under way of one ledger."""

    def __init__(self, out: pathlib.Path):
        """Reads the batches for the Parquet file `out`, and forgets a batch that the API has not begun to create.

        Its requests are planned again, since the user may have changed a setting that the API refused.

        Raises:
          UserError: the state on disk is damaged.
        """
        self.path = out.with_name(out.name + ".batches.json")
        self._folder = out.with_name(out.name + ".batches")
        self.open: list[Batch] = []
        if self.path.exists():
            try:
                state = json.loads(self.path.read_bytes())
                if state["format"] != _FORMAT:
                    raise ValueError("another format")
                self.open = [Batch(**fields | {"most": Usage(*fields["most"])}) for fields in state["batches"]]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path}: damaged ({error}); mend it: it says which batches are paid for"
                ) from None
        for batch in [batch for batch in self.open if batch.step in (PLANNED, UPLOADED)]:
            self.close(batch)

    @property
    def most(self) -> Usage:
        """Upper bound on the tokens of all batches."""
        return sum((batch.most for batch in self.open), NOTHING)

    def plan(self, requests: Sequence[Request], base_url: str) -> Batch:
        """Writes the requests of a new batch to disk; the API does not know it yet."""
        most = sum((request.most for request in requests), NOTHING)
        batch = Batch(secrets.token_hex(12), len(requests), most, base_url)
        self._folder.mkdir(exist_ok=True)
        with self._file(batch).open("w", encoding="utf-8") as file:
            for request in requests:
                file.write(json.dumps({"key": request.key, "question": request.question, "body": request.body}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.open.append(batch)
        self.save()
        return batch

    def reach(self, batch: Batch, step: str, **ids: str) -> None:
        """Writes that a batch has reached a step, with the ids that the API gave."""
        batch.step = step
        for name, value in ids.items():
            setattr(batch, name, value)
        self.save()

    def close(self, batch: Batch) -> None:
        """Forgets a batch, after its answers are in the ledger and on the disk."""
        self.open.remove(batch)
        self.save()
        self._file(batch).unlink(missing_ok=True)
        if not self.open:
            self.path.unlink()
            if self._folder.exists():  # a kill may have left files there of a batch that is not listed
                shutil.rmtree(self._folder)

    def requests(self, batch: Batch) -> Iterator[tuple[Key, dict[str, Any], dict[str, Any]]]:
        """Key, question and body of each request, in order; raises a `UserError` if the file is absent or damaged."""
        file = self._file(batch)
        try:
            with file.open("rb") as lines:
                rows = [json.loads(line) for line in lines]
            rows = [(Key(*row["key"]), row["question"], row["body"]) for row in rows]
            if len(rows) != batch.requests:
                raise ValueError(f"{len(rows)} of {batch.requests} requests")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); it says what the answers of a batch answer") from None
        yield from rows

    def keys(self) -> set[Key]:
        """The keys of all requests in open batches."""
        return {key for batch in self.open for key, _, _ in self.requests(batch)}

    def upload(self, batch: Batch) -> bytes:
        """The batch's file of requests in the API's format."""
        return b"".join(
            upload_line(batch.custom_id(number), body) for number, (_, _, body) in enumerate(self.requests(batch))
        )

    def save(self) -> None:
        """Writes the list, whole or not at all."""
        state = {"format": _FORMAT, "batches": [dataclasses.asdict(batch) for batch in self.open]}
        replace(self.path, json.dumps(state, indent=1).encode())

    def _file(self, batch: Batch) -> pathlib.Path:
        return self._folder / f"{batch.name}.jsonl"


def upload_line(custom_id: str, body: dict[str, Any]) -> bytes:
    """One line of the Batch API's input file."""
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"
