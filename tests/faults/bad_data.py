"""Bad data: teacher Parquet for training, and files of prompts or answers for the other commands."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from tests.faults.bad_input import CHAT, TURN, USER, BadInput, Place

DEEP = '{"prompt": ' + "[" * 100_000
LONG_NUMBER = '{"prompt": "a", "id": ' + "1" * 5000 + "}"


def broken_text(*texts: bytes) -> pa.Array:
    """Strings whose bytes are as given, as broken writers leave them."""
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(texts), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(texts))]
    )


def rows(name: str, message: str, content: Any = None, answers: Any = None, **columns: Any) -> BadInput:
    """Training on Parquet with these columns."""
    return BadInput(name, message, lambda p: p.run(data__train=p.parquet(content, answers, **columns)))


def table(name: str, message: str, **columns: Any) -> BadInput:
    """Training on Parquet with these columns and no others."""
    return BadInput(name, message, lambda p: p.run(data__train=p.table(pa.table(columns))))


def damaged(name: str, message: str, change: Callable[[bytes], bytes]) -> BadInput:
    """Training on a good file whose bytes were changed."""
    return BadInput(name, message, lambda p: p.run(data__train=p.file("bad.parquet", change(p.train.read_bytes()))))


def lines(name: str, message: str, text: str | bytes, file: str = "bad.jsonl") -> BadInput:
    """Answering the prompts of a text file."""
    return BadInput(name, message, lambda p: p.command("generate", prompts=p.file(file, text)))


def answers(name: str, message: str, text: str) -> BadInput:
    """Scoring the answers of a JSONL file."""
    return BadInput(name, message, lambda p: p.command("score", data=p.file("bad.jsonl", text)))


def _fifo(p: Place) -> list[str]:
    os.mkfifo(p.folder / "bad.parquet")
    return p.run(data__train=p.folder / "bad.parquet")


def _json(**row: Any) -> str:
    return json.dumps(row) + "\n"


def _directory(p: Place) -> pathlib.Path:
    (p.folder / "bad.jsonl").mkdir()
    return p.folder / "bad.jsonl"


_ENDS = [[USER, {"role": "assistant", "content": "x"}]]
_DUPLICATE = pa.table([[[USER]], ["a"], ["b"]], names=["content", "teacher_response", "teacher_response"])

NOT_PARQUET = r"bad\.parquet: not a Parquet file that can be read"

PARQUET = [
    damaged("text called Parquet", NOT_PARQUET + r" \(Parquet magic bytes not found", lambda good: b"id,prompt\n" * 9),
    damaged("a file of no bytes", NOT_PARQUET + r" \(Parquet file size is 0 bytes", lambda good: b""),
    damaged("a file cut at its end", NOT_PARQUET, lambda good: good[:-20]),
    damaged("a file without its middle", NOT_PARQUET, lambda good: good[:40] + good[-400:]),
    damaged("a length of the footer that lies", NOT_PARQUET, lambda good: good[:-8] + b"\xff\xff\xff\x7fPAR1"),
    damaged("pages of noise", NOT_PARQUET, lambda good: good[:4] + bytes(range(256)) + good[260:]),
    BadInput("a pipe instead of a file", r"bad\.parquet: not a regular file", _fifo),
    BadInput(
        "no such file", r"absent\.parquet: no such file", lambda p: p.run(data__train=p.folder / "absent.parquet")
    ),
    BadInput("an empty folder", "the directory holds no file of rows", lambda p: p.run(data__train=p.folder)),
    BadInput("a pattern without files", "no file matches this pattern", lambda p: p.run(data__train=p.folder / "*.p")),
    BadInput("a name of TFDS that is none", r"tfds:: expected tfds:NAME/SPLIT", lambda p: p.run(data__train="tfds:")),
    table(
        "no chats",
        r"bad\.parquet: text, teacher_response: rows of no known format; expected `content` and `teacher_response`",
        text=["a"],
        teacher_response=["b"],
    ),
    BadInput(
        "no answers",
        r"bad\.parquet: content: rows of no known format",
        lambda p: p.run(data__train=p.table(pa.table({"content": pa.array([[USER]], CHAT)}))),
    ),
    BadInput(
        "columns that are not there",
        r"bad\.jsonl:1: no column `gold`, which config\.data\.columns names; there is `question`, `answer`",
        lambda p: p.run(
            data__train=p.file("bad.jsonl", _json(question="a", answer="b")), data__columns="question,gold"
        ),
    ),
    BadInput(
        "columns of another form",
        r"config\.data\.columns is 'a,b,c'; expected PROMPT,ANSWER",
        lambda p: p.run(data__columns="a,b,c"),
    ),
    BadInput(
        "a chat of images",
        r"bad\.jsonl:1: a message of `messages` has a part of the type 'image_url'; gadjax reads text alone",
        lambda p: p.run(
            data__train=p.file("bad.jsonl", _json(messages=[{"role": "user", "content": [{"type": "image_url"}]}]))
        ),
    ),
    BadInput(
        "no columns",
        r"bad\.parquet: no columns: rows of no known format",
        lambda p: p.run(data__train=p.table(pa.table({}))),
    ),
    BadInput(
        "a column twice", "column `teacher_response` is there 2 times", lambda p: p.run(data__train=p.table(_DUPLICATE))
    ),
    table(
        "a chat that is text", "column `content` has type string; expected list", content=["a"], teacher_response=["b"]
    ),
    table(
        "turns that are text",
        r"column `content` has type list<element: string>; expected",
        content=[["a"]],
        teacher_response=["b"],
    ),
    rows("chats nested once more", r"`content` has type list<element: list<", pa.array([[[USER]]], pa.list_(CHAT))),
    rows("turns without a role", "without a string `role`", pa.array([[{"content": "a"}]])),
    rows("turns of numbers", "without a string `content`", pa.array([[{"role": "user", "content": 3}]])),
    rows(
        "answers that are numbers", "column `teacher_response` has type int64; expected string", answers=pa.array([3])
    ),
    rows(
        "answers that are bytes", "column `teacher_response` has type binary; expected string", answers=pa.array([b"a"])
    ),
    rows("a reason that is a number", "column `finish_reason` has type double", finish_reason=pa.array([1.5])),
    rows("no rows", "the file has no rows", []),
    rows("a null chat", "row 1: `content` is null; every row needs a chat", [[USER], None]),
    rows("an empty chat", "row 1: the chat in `content` is empty", [[USER], []]),
    rows("a null role", "row 0: a turn of the chat has a null role", [[{"role": None, "content": "a"}]]),
    rows("null content", "row 0: a turn of the chat has null content", [[{"role": "user", "content": None}]]),
    rows(
        "an unknown role",
        "row 0: unknown role 'human'; expected one of system, user",
        [[{"role": "human", "content": "a"}]],
    ),
    rows("a role of control characters", r"unknown role 'us\\x00er\\n'", [[{"role": "us\0er\n", "content": "a"}]]),
    rows("a chat that ends with the answer", "the chat ends with the assistant; it must end with a user turn", _ENDS),
    rows("a chat of a system turn", "the chat ends with the system", [[{"role": "system", "content": "a"}]]),
    rows("a null answer", "row 0: `teacher_response` is null", answers=pa.array([None], pa.string())),
    rows("answers that are all null", "row 0: `teacher_response` is null", answers=pa.nulls(1)),
    rows(
        "an empty answer",
        "row 1: `teacher_response` is empty or only white space",
        [[USER]] * 2,
        pa.array(["a", " \n"]),
    ),
    rows(
        "half a surrogate pair",
        "row 1: text in answers is not valid UTF-8",
        [[USER]] * 2,
        broken_text(b"a", b"\xed\xa0\x80"),
    ),
    rows("Latin-1 text", r"row 0: text in answers is not valid UTF-8", answers=broken_text("café".encode("latin-1"))),
    BadInput(
        "broken text of a user",
        "row 1: text in contents is not valid UTF-8",
        lambda p: p.run(
            data__train=p.parquet(
                pa.ListArray.from_arrays(
                    [0, 1, 2],
                    pa.StructArray.from_arrays([pa.array(["user"] * 2), broken_text(b"a", b"\xff")], fields=list(TURN)),
                )
            )
        ),
    ),
    rows("too few rows", "has 1 usable rows, fewer than config.batch_size 8"),
    rows(
        "all answers refused",
        "no usable row: of 8, 8 are marked as no answer",
        [[USER]] * 8,
        finish_reason=["refusal"] * 8,
    ),
    rows(
        "all answers cut",
        r"8 were cut by the API \(data.cut_answers='keep' uses them\)",
        [[USER]] * 8,
        finish_reason=["length"] * 8,
    ),
    BadInput(
        "rows of 10 MB",
        "8 have prompts of more than 48 tokens",
        lambda p: p.run(
            data__train=p.parquet(
                [[{"role": "user", "content": "two " * 2_500_000}], *[[USER | {"content": "one " * 99}]] * 7]
            )
        ),
    ),
]

PROMPTS = [
    lines(
        "prompts that are not JSON",
        r"bad\.jsonl:2: not JSON \(Expecting value at column 12\)",
        _json(prompt="a") + '{"prompt": }',
    ),
    lines("a line that nests too deep", r"bad\.jsonl:1: not JSON \(nested too deep\)", DEEP),
    lines("a number of 5000 digits", r"bad\.jsonl:1: not JSON \(Exceeds the limit", LONG_NUMBER),
    lines("a line that is a list", r"bad\.jsonl:1: expected an object such as", "[1]\n"),
    lines("Latin-1 lines", r"bad\.jsonl:2: not UTF-8", b'{"prompt": "a"}\n{"prompt": "\xe9"}\n'),
    lines("UTF-16 lines", r"bad\.jsonl:1: not UTF-8", '{"prompt": "a"}\n'.encode("utf-16")),
    lines("no prompts", r"bad\.jsonl: the file holds no prompts", "\n \n"),
    lines("a text file of spaces", r"bad\.txt: the file holds no prompts", " \n", "bad.txt"),
    lines("another kind of file", r"--prompts=.*bad\.pdf: expected a file that ends in \.parquet", "a,b\n", "bad.pdf"),
    lines("Parquet prompts that are none", r"bad\.parquet: not a Parquet file", b"PAR1", "bad.parquet"),
    BadInput(
        "a folder of prompts",
        r"--prompts=.*bad\.jsonl: the directory holds no file of rows",
        lambda p: p.command("generate", prompts=_directory(p)),
    ),
    lines(
        "a lone surrogate",
        r"bad\.jsonl:1: `prompt` holds half of a surrogate pair; remove it",
        '{"prompt": "a\\ud800"}',
    ),
    lines(
        "a lone surrogate in a chat",
        "the user's text holds half of a surrogate pair",
        '{"content": [{"role": "user", "content": "\\udfff"}]}',
    ),
    lines("a lone surrogate in an id", "`id` holds half of a surrogate pair", '{"prompt": "a", "id": "\\ud800"}'),
    lines("a prompt that is a number", r"bad\.jsonl:1: `prompt` is int; expected text", _json(prompt=3)),
    lines("an id that is a list", "`id` is list; expected text", _json(prompt="a", id=[1])),
    lines("neither prompt nor content", "neither `prompt` nor `content` is there; give one of them", _json(text="a")),
    lines("prompt and content", "both `prompt` and `content` are there", _json(prompt="a", content=[USER])),
    lines("content that is text", "`content` must be a list of messages, at least one", _json(content="a")),
    lines("a message without text", "a message of `content` is not of the form", _json(content=[{"role": "user"}])),
    lines(
        "messages of images",
        "a message of `content` has a part of the type 'image'; gadjax reads text alone",
        _json(content=[{"role": "user", "content": [{"type": "image"}]}]),
    ),
    lines("a prompt of spaces", r"bad\.jsonl:1: the user's text is empty", _json(prompt=" \n")),
    lines(
        "a chat that the student answered", r"bad\.jsonl:1: the chat ends with the assistant", _json(content=_ENDS[0])
    ),
    lines(
        "an id twice",
        r"bad\.jsonl:2: id '7' is that of .*bad\.jsonl:1 too; ids must differ",
        _json(prompt="a", id=7) + _json(prompt="b", id="7"),
    ),
    lines(
        "a prompt of 1 MB",
        r"max_position_embeddings is 128, but sequences may reach \d+ tokens; shorten the prompt",
        _json(prompt="two " * 250_000),
    ),
    BadInput(
        "Parquet prompts without a column for them",
        r"bad\.parquet: neither `prompt` nor `content` is there; .*; there is `text`",
        lambda p: p.command("generate", prompts=p.table(pa.table({"text": ["a"]}))),
    ),
    BadInput(
        "Parquet prompts that are not Unicode",
        r"bad\.parquet: row 1: text that is not valid UTF-8",
        lambda p: p.command("generate", prompts=p.table(pa.table({"prompt": broken_text(b"a", b"\xff")}))),
    ),
    answers("answers without a response", r"bad\.jsonl:1: `response` is missing; expected text", _json(prompt="a")),
    answers(
        "answers that are all refused",
        "no row to score: all 1 are marked",
        _json(prompt="a", response="b", finish_reason="refusal"),
    ),
    BadInput(
        "a ledger that is none",
        r"bad\.jsonl:1: not a line of a ledger",
        lambda p: ["gadjax.collect", f"--inspect={p.file('bad.jsonl', '{}' + chr(10))}"],
    ),
    BadInput(
        "a teacher's file that is none",
        NOT_PARQUET,
        lambda p: ["gadjax.collect", f"--inspect={p.file('bad.parquet', 'x')}"],
    ),
    BadInput(
        "publishing what is no Parquet",
        NOT_PARQUET,
        lambda p: ["gadjax.collect", f"--publish={p.file('bad.parquet', 'x')}", f"--out={p.folder / 'name' / '1.0.0'}"],
    ),
]
