"""Small samples of each format and of each kind of file, and the tables of docs/formats.md that are made from them.

python -m tests.data.format_cases      # writes the tables of docs/formats.md anew
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from gadjax.data.chats import Messages
from gadjax.data.schema import read_rows
from gadjax.errors import UserError

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "formats.md"

USER = [{"role": "user", "content": "Hi"}]
ASSISTANT = [{"role": "assistant", "content": "Hello."}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
TURNS = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
_PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
]


class Read(NamedTuple):
    """A row that is read: what it becomes."""

    row: dict[str, Any]
    chat: Messages
    answers: tuple[str, ...] = ("Hello.",)
    columns: str = ""  # config.data.columns


READ = [
    Read({"content": USER, "teacher_response": "Hello."}, USER),
    Read({"prompt": "Hi", "teacher_response": "Hello."}, USER),
    Read({"messages": SYSTEM + TURNS + USER + ASSISTANT}, SYSTEM + TURNS + USER),
    Read({"messages": _PARTS}, USER),
    Read({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, USER),
    Read({"conversations": USER + ASSISTANT, "system": "Be brief."}, SYSTEM + USER),
    Read({"prompt": "Hi", "completion": "Hello."}, USER),
    Read({"prompt": SYSTEM + USER, "completion": ASSISTANT}, SYSTEM + USER),
    Read({"prompt": "Hi", "response": "Hello."}, USER),
    Read({"prompt": "Hi", "response": ["Hello.", "Hey."]}, USER, ("Hello.", "Hey.")),
    Read({"instruction": "Hi", "input": "", "output": "Hello."}, USER),
    Read(
        {"instruction": "Add.", "input": "1, 2", "output": "3"}, [{"role": "user", "content": "Add.\n\n1, 2"}], ("3",)
    ),
    Read(
        {"instruction": "Hi", "output": "Hello.", "system": "Be brief.", "history": [["A", "B"]]}, SYSTEM + TURNS + USER
    ),
    Read({"question": "Hi", "answer": "Hello."}, USER),
    Read({"question_text": "Hi", "gold": "Hello."}, USER, columns="question_text,gold"),
    Read({"talk": USER + ASSISTANT}, USER, columns="talk"),
    Read({"messages": USER + ASSISTANT, "id": 7, "category": 3, "source": None, "meta": {"a": [1]}}, USER),
    Read({"prompt": "Hi", "completion": None, "response": "Hello."}, USER),
]


class Refused(NamedTuple):
    """A row, or a whole file, that is refused: the message behind the file's name, or with it."""

    what: str
    content: dict[str, Any] | str
    message: str
    name: str = "my.jsonl"
    columns: str = ""


_ORDER = (
    "rows of no known format; expected `content` and `teacher_response`, or `prompt` and `teacher_response`, or "
    "`messages`, or `conversations`, or `prompt` and `completion`, or `prompt` and `response`, or `instruction` and "
    "`output`, or `question` and `answer`; training also takes --config.data.columns=PROMPT,ANSWER"
)
_IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
REFUSED = [
    Refused("columns of no format", {"text": "Hi"}, f"my.jsonl:1: text: {_ORDER}"),
    Refused(
        "columns of two formats",
        {"prompt": "Hi", "completion": "a", "response": "b"},
        "my.jsonl:1: the columns of several formats are there, TRL (`prompt`, `completion`) and prompts with responses "
        "(`prompt`, `response`): name one, such as --config.data.columns=prompt,completion",
    ),
    Refused(
        "columns that are named and not there",
        {"question": "Hi", "answer": "a"},
        "my.jsonl:1: no column `gold`, which config.data.columns names; there is `question`, `answer`",
        columns="question,gold",
    ),
    Refused(
        "a chat without an answer",
        {"messages": USER + ASSISTANT + USER},
        "my.jsonl:1: the chat in `messages` does not end with the assistant, so it has no answer",
    ),
    Refused(
        "an answer without a prompt",
        {"messages": ASSISTANT},
        "my.jsonl:1: the chat in `messages` is empty before the answer",
    ),
    Refused(
        "two answers in a row",
        {"messages": USER + ASSISTANT + ASSISTANT},
        "my.jsonl:1: the chat ends with the assistant before the answer; it must end with a user turn",
    ),
    Refused(
        "images",
        {"messages": _IMAGE + ASSISTANT},
        "my.jsonl:1: a message of `messages` has a part of the type 'image_url'; gadjax reads text alone, so leave the "
        "row out",
    ),
    Refused(
        "calls of tools",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "{}"}]},
        "my.jsonl:1: a message of `conversations` has the role function_call, and calls of tools are not read; leave "
        "the row out",
    ),
    Refused(
        "a role that is none",
        {"messages": [{"role": "robot", "content": "Hi"}]},
        'my.jsonl:1: a message of `messages` is not of the form {"role": ..., "content": TEXT} with a role of system, '
        "user, assistant",
    ),
    Refused("a null answer", {"prompt": "Hi", "completion": None}, "my.jsonl:1: `completion` is null"),
    Refused("an empty answer", {"question": "Hi", "answer": " "}, "my.jsonl:1: `answer` is empty or only white space"),
    Refused(
        "an answer that is no text",
        {"question": "Hi", "answer": 42},
        "my.jsonl:1: `answer` is int; expected text, or one turn of the assistant",
    ),
    Refused(
        "a completion of several turns",
        {"prompt": "Hi", "completion": TURNS},
        "my.jsonl:1: `completion` is a chat of 2 turns; expected text, or one turn of the assistant",
    ),
    Refused(
        "an input that is no text",
        {"instruction": "Hi", "input": 3, "output": "a"},
        "my.jsonl:1: `input` is int; expected text",
    ),
    Refused(
        "a history that is no list of pairs",
        {"instruction": "Hi", "output": "a", "history": ["A", "B"]},
        "my.jsonl:1: `history` must be a list of pairs of texts, [[PROMPT, ANSWER], ...]",
    ),
    Refused(
        "a reason that is no text",
        {"prompt": "Hi", "completion": "a", "finish_reason": 1},
        "my.jsonl:1: `finish_reason` is int; expected text",
    ),
    Refused(
        "a line that is no JSON",
        '{"prompt": "Hi", "completion": "a"}\n{"prompt": \n',
        "my.jsonl:2: not JSON (Expecting value at column 11)",
    ),
    Refused("JSON that is no list of objects", '["Hi"]', "my.json: row 0: expected an object such as", "my.json"),
    Refused(
        "a row of CSV with too few cells",
        "prompt,completion\nHi,Hello.\nHi\n",
        "my.csv:3: 1 cells, and the header has 2",
        "my.csv",
    ),
    Refused(
        "a column of CSV twice",
        "prompt,completion,prompt\n",
        "my.csv:1: column `prompt` is there 2 times; keep one",
        "my.csv",
    ),
    Refused("lines that are not UTF-8", "prompt\n\udce9\n", "my.csv:2: not UTF-8 (", "my.csv"),
    Refused("a file that is cut", "PAR1", "my.parquet: not a Parquet file that can be read (", "my.parquet"),
    Refused("text", "Hi\n", f"my.txt:1: prompt: {_ORDER}", "my.txt"),
    Refused(
        "another kind of file",
        "x",
        "my.pdf: expected a file that ends in .parquet, .arrow, .feather, .ipc, .jsonl, .ndjson, .json, .csv, .tsv, "
        ".txt (text also with .gz, .zst or .bz2), or a dataset as hf:OWNER/NAME/SPLIT or tfds:NAME/SPLIT",
        "my.pdf",
    ),
    Refused(
        "a ledger",
        "{}",
        "my.parquet.ledger.jsonl: the ledger of a collection; gadjax.collect writes the answers beside it (--out): "
        "give that file",
        "my.parquet.ledger.jsonl",
    ),
    Refused("no rows", "", "my.jsonl: the file has no rows"),
]


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """CSV of rows whose values are text."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _as_arrow(rows: list[dict[str, Any]], *, stream: bool = False) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


# How rows are written to a file whose name ends so.
KINDS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".parquet": _as_parquet,
    ".arrow": _as_arrow,
    ".feather": _as_arrow,
    ".ipc": lambda rows: _as_arrow(rows, stream=True),
    ".jsonl": as_lines,
    ".ndjson": as_lines,
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".csv": as_csv,
    ".tsv": lambda rows: as_csv(rows, "\t"),
    ".jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    ".jsonl.zst": lambda rows: pa.compress(as_lines(rows), codec="zstd", asbytes=True),
    ".json.bz2": lambda rows: bz2.compress(json.dumps(rows).encode()),
    ".csv.gz": lambda rows: gzip.compress(as_csv(rows)),
}


def refusal(case: Refused, folder: pathlib.Path) -> str:
    """The message of a refused case, without the folder."""
    content = (
        as_lines([case.content]) if isinstance(case.content, dict) else case.content.encode("utf-8", "surrogateescape")
    )
    (folder / case.name).write_bytes(content)
    try:
        read_rows(folder / case.name, case.columns)
    except UserError as error:
        return str(error).replace(f"{folder}/", "")
    raise AssertionError(f"{case.what}: was read")


def tables(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """The tables of the page by name, as Markdown, made by reading the samples."""
    lines = ["| taken for | a row | the chat before the answer |", "|---|---|---|"]
    for number, case in enumerate(READ):
        path = folder / f"{number}.jsonl"
        path.write_bytes(as_lines([case.row]))
        rows = read_rows(path, case.columns)
        label = rows.taken_for[0].label
        if case.columns:
            label = f"`--config.data.columns={case.columns}`"
        chat = ", ".join(f"{turn['role']}: {json.dumps(turn['content'])}" for turn in rows.messages(0))
        lines.append(f"| {label} | `{json.dumps(case.row)}` | {chat} |")
    yield "read", "\n".join(lines)
    lines = ["| what | the message |", "|---|---|"]
    for case in REFUSED:
        shown = re.sub(r"([|<>*])", r"\\\1", refusal(case, folder))
        lines.append(f"| {case.what} | {shown} |")
    yield "refused", "\n".join(lines)


def page() -> str:
    """The page with its tables made anew."""
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for name, table in tables(pathlib.Path(folder)):
            begin, end = f"<!-- {name}: made by tests/data/format_cases.py -->\n", f"<!-- end of {name} -->\n"
            before, _, rest = text.partition(begin)
            after = rest.partition(end)[2]
            text = f"{before}{begin}\n{table}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
