import asyncio
import dataclasses
import errno
import io
import os
import pathlib

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gadjax.data.prompts import Prompt, read_prompts
from gadjax.data.schema import read_rows
from gadjax.errors import UserError
from gadjax.progress import AnswerProgress
from gadjax.teacher.budget import Budget, Prices
from gadjax.teacher.client import TeacherClient
from gadjax.teacher.collector import check_complete, collect, questions, write_parquet
from gadjax.teacher.ledger import Key, Ledger, LedgerEntry
from gadjax.teacher.protocol import RequestSettings
from tests.teacher.fake_server import FakeServer, Reply, error

PROMPTS = [Prompt(f"id{i}", [{"role": "user", "content": f"prompt {i}"}], "numbers") for i in range(20)]

PRICES = Prices(input=0.0, output=1e6)  # a unit of currency for a token of answer


def run(
    server, path, prompts=PROMPTS, *, concurrency=4, temperature=0.7, seed=None, out=None, n=1, limit=None, **options
):
    """Collects into a ledger at `path`, and into the Parquet `out`."""
    options = {"api_key": None, "name": "Fake-1", "first_wait": 0.01, "max_retries": 2} | options
    asked = questions(prompts, n)

    async def work():
        async with TeacherClient(
            server.base_url, "fake", RequestSettings(temperature, 1.0, 16, seed), **options
        ) as teacher:
            with Ledger(path) as ledger:
                budget = None if limit is None else Budget(PRICES, ledger, limit)
                result = await collect(teacher, asked, ledger, concurrency=concurrency, budget=budget)
                if out is not None:
                    write_parquet(out, teacher, asked, ledger)
                return result

    return asyncio.run(work())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_every_prompt_is_asked_once_and_at_most_so_many_at_a_time(path):
    with FakeServer(lambda prompt, attempt: Reply(seconds=0.03)) as server:
        result = run(server, path, concurrency=4)
    assert sorted(server.prompts) == sorted(prompt.content[0]["content"] for prompt in PROMPTS)
    assert server.most_at_once == 4
    assert (result.received, result.failures) == (20, {})


def test_a_rerun_asks_for_what_is_missing(path):
    with FakeServer() as server:
        run(server, path, PROMPTS[:12])
        run(server, path)
        assert sorted(server.prompts[12:]) == sorted(prompt.content[0]["content"] for prompt in PROMPTS[12:])
        assert run(server, path).received == 0
        assert len(server.requests) == 20
        # Another temperature is another answer.
        run(server, path, temperature=0.8)
    assert len(server.requests) == 40


def test_failed_rows_are_reported_and_asked_again(path, tmp_path):
    def behave(prompt, attempt):
        return error(500, "oops") if prompt in ("prompt 3", "prompt 7") and attempt <= 3 else Reply()

    out = tmp_path / "t.parquet"
    with FakeServer(behave) as server:
        result = run(server, path, out=out)
        assert set(result.failures) == {"id3", "id7"}
        assert result.received == 18 and "HTTP 500" in result.failures["id3"]
        assert pq.read_metadata(out).num_rows == 18
        assert run(server, path, out=out).failures == {}
    assert server.prompts[-2:] in (["prompt 3", "prompt 7"], ["prompt 7", "prompt 3"])
    assert pq.read_table(out)["id"].to_pylist() == [prompt.id for prompt in PROMPTS]


def test_a_refused_key_stops_all_and_keeps_answers_under_way(path):
    def behave(prompt, attempt):
        return error(401, "no") if prompt == "prompt 1" else Reply(seconds=0.3)

    with FakeServer(behave) as server:
        with pytest.raises(UserError, match="refuses the key"):
            run(server, path)
        assert sorted(server.prompts) == [f"prompt {i}" for i in range(4)]
        server.behave = lambda prompt, attempt: Reply()
        run(server, path)
    # Answers 0, 2 and 3 were paid for.
    assert server.prompts.count("prompt 0") == server.prompts.count("prompt 3") == 1


def test_a_stop_wakes_those_that_wait(path):
    def behave(prompt, attempt):
        if prompt == "prompt 0":
            return error(500, "slow down", retry_after="300")
        return error(401, "no", retry_after="0") if prompt == "prompt 5" else Reply()

    with FakeServer(behave) as server, pytest.raises(UserError, match="refuses the key"):
        run(server, path)
    assert server.times[-1] - server.times[0] < 30


def test_a_server_that_fails_every_row_ends_the_run(path):
    server = FakeServer(lambda prompt, attempt: error(400, "no such field"))
    with (
        server,
        pytest.raises(UserError, match=r"\d+ questions in a row to fake at .* failed.*: HTTP 400: no such field"),
    ):
        run(server, path)
    assert len(server.requests) <= 8 + 4


def test_failures_with_answers_between_do_not_end_the_run(path):
    def behave(prompt, attempt):
        return error(400, "too long") if int(prompt.split()[1]) % 2 else Reply()

    with FakeServer(behave) as server:
        result = run(server, path, concurrency=1)
    assert (result.received, len(result.failures)) == (10, 10)


def test_the_parquet_has_the_published_schema_and_provenance(path, tmp_path):
    marked = {
        "prompt 1": Reply(text=None),
        "prompt 2": Reply(finish_reason="length"),
        "prompt 3": Reply(text=None, message={"refusal": "No."}),
    }
    prompts = [Prompt("chat", [*PROMPTS[0].content, {"role": "assistant", "content": "Hm."}, *PROMPTS[9].content])]
    prompts += PROMPTS[1:4]
    out = tmp_path / "t.parquet"
    with FakeServer(lambda prompt, attempt: marked.get(prompt, Reply())) as server:
        run(server, path, prompts, out=out, system="Be brief.")
    first, *others = pq.read_table(out).to_pylist()
    assert first == {
        "content": prompts[0].content,
        "teacher_response": "an answer",
        "category": None,
        "id": "chat",
        "model": "Fake-1",
        "created": 1_700_000_000,
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 16,
        "seed": None,
        "system": "Be brief.",
        "sample": 0,
        "request_fields": None,
    }
    assert [row["finish_reason"] for row in others] == ["error", "length", "refusal"]
    assert pq.ParquetFile(out).metadata.row_group(0).column(0).compression == "ZSTD"
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []
    # The trainer's reader takes the file as it is, and knows the marks.
    rows = read_rows(out)
    assert list(rows.cut) == [False, False, True, False]
    assert list(rows.marked) == [False, True, False, True]


def test_a_failed_write_leaves_the_old_parquet(path, tmp_path, monkeypatch):
    out = tmp_path / "t.parquet"
    with FakeServer() as server:
        run(server, path, PROMPTS[:5], out=out)
        before = out.read_bytes()

        def fail(self, key):
            raise RuntimeError("killed")

        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(Ledger, "__getitem__", fail)
            run(server, path, out=out)
        assert out.read_bytes() == before
        full = pathlib.Path("/dev/full")  # a device that is always full
        if full.exists():
            (tmp_path / "t.parquet.partial").symlink_to(full)
            with pytest.raises(UserError, match=r"--out=.*t\.parquet cannot be written: .*No space left"):
                run(server, path, out=out)
    assert out.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger.jsonl", "t.parquet"]


def test_the_parquet_keeps_every_answer_of_the_ledger(path, tmp_path):
    """Answers to prompts that have left the file, and answers with other settings, keep their columns."""
    out = tmp_path / "t.parquet"

    def rows():
        table = pq.read_table(out).to_pylist()
        return [(row["id"], row["content"], row["category"], row["temperature"], row["model"]) for row in table]

    def expected(prompts, temperature=0.7, model="Fake-1"):
        return [(prompt.id, prompt.content, prompt.category, temperature, model) for prompt in prompts]

    with FakeServer() as server:
        run(server, path, PROMPTS[:4], out=out)
        run(server, path, PROMPTS[2:6], out=out)
        assert sorted(rows()[4:]) == expected(PROMPTS[:2])
        assert rows()[:4] == expected(PROMPTS[2:6])
        run(server, path, PROMPTS[:1], out=out, temperature=0.9, name=None)
        assert rows()[0] == expected(PROMPTS[:1], 0.9, "fake")[0]
        assert sorted(rows()[1:]) == expected(PROMPTS[:6])
        server.behave = lambda prompt, attempt: error(400, "no")
        before = pq.read_table(out).to_pylist()
        failed = run(server, path, PROMPTS[6:9], out=out)
    assert len(failed.failures) == 3
    assert sorted(pq.read_table(out).to_pylist(), key=str) == sorted(before, key=str)
    # What a rerun says of a prompt is what the file of prompts says now.
    renamed = dataclasses.replace(PROMPTS[0], category="digits")
    with FakeServer() as server:
        run(server, path, [renamed], out=out, name="Fake-2")
    assert not server.requests
    assert rows()[0] == expected([renamed], model="Fake-2")[0]


def test_without_answers_no_file_is_written(path, tmp_path):
    with FakeServer(lambda prompt, attempt: error(400, "no")) as server:
        run(server, path, PROMPTS[:3], out=tmp_path / "t.parquet")
    assert not list(tmp_path.glob("t.parquet*"))


def test_a_file_that_the_ledger_cannot_replace_is_kept(path, tmp_path):
    out = tmp_path / "t.parquet"
    with FakeServer() as server:
        run(server, path, PROMPTS[:5], out=out)
        before = out.read_bytes()
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        with Ledger(path) as ledger, pytest.raises(UserError, match=r"t\.parquet holds 5 rows, but .* only 2 answers"):
            check_complete(out, ledger)
        with pytest.raises(UserError, match=r"t\.parquet holds 5 rows, but .* only 3 answers"):
            run(server, path, PROMPTS[5:6], out=out)
        assert out.read_bytes() == before
        out.write_text("a thesis")
        with pytest.raises(UserError, match=r"--out=.*t\.parquet: there is another file"):
            run(server, path, PROMPTS[5:6], out=out)
        assert out.read_text() == "a thesis"


def test_the_ledger_reaches_the_disk_while_answers_come(path, monkeypatch):
    synced = []
    monkeypatch.setattr(Ledger, "sync", lambda self: synced.append(len(self._places)))
    with FakeServer(lambda prompt, attempt: Reply(seconds=0.4)) as server:
        run(server, path, PROMPTS[:4], concurrency=1)
    # Between the first answer and the last, and at the end.
    assert {1, 2, 3} & set(synced) and synced[-1] == 4


def test_a_disk_that_keeps_nothing_ends_the_run(path, monkeypatch):
    """The disk fails while answers still leave the process."""
    failed = []

    def fsync(_):
        if not failed:  # as the kernel has it: the error is told once
            failed.append(True)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    server = FakeServer(lambda prompt, attempt: Reply(seconds=0.2))
    with server, pytest.raises(UserError, match=r"ledger\.jsonl: cannot be written \(Input/output error\)"):
        run(server, path, concurrency=1)
    assert len(server.requests) < len(PROMPTS)


def test_progress_shows_rate_tokens_and_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    teacher = TeacherClient("http://127.0.0.1:1/v1", "fake", RequestSettings(0.7, 1.0, 16), api_key=None)
    shown = io.StringIO()
    with AnswerProgress(Console(file=shown), 200, 40, teacher, None) as progress:
        for _ in range(80):
            now[0] += 0.5
            progress.add(LedgerEntry("a", "stop", 0, 7, 3))
    first, *_ = shown.getvalue().splitlines()
    assert first == "collecting 100/200  2 answers/s  180 tokens (6/s)  0:00:50 left"


def test_progress_draws_a_bar_on_a_terminal():
    teacher = TeacherClient("http://127.0.0.1:1/v1", "fake", RequestSettings(0.7, 1.0, 16), api_key=None)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, force_interactive=True, width=120)
    with AnswerProgress(console, 2, 0, teacher, None) as progress:
        progress.add(LedgerEntry("a", "stop", 0, 7, 3))
        progress.add(LedgerEntry("a", "stop", 0, 7, 3))
    assert "2/2" in shown.getvalue() and "6 tokens" in shown.getvalue()


@pytest.mark.parametrize("limit, shown_limit", [(None, ""), (500.0, " of 500")])
def test_progress_shows_the_cost_so_far(path, monkeypatch, limit, shown_limit):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    teacher = TeacherClient("http://127.0.0.1:1/v1", "fake", RequestSettings(0.7, 1.0, 16), api_key=None)
    shown = io.StringIO()
    with Ledger(path) as ledger:
        budget = Budget(PRICES, ledger, limit)
        with AnswerProgress(Console(file=shown), 200, 0, teacher, budget) as progress:
            for i in range(31):
                now[0] += 1
                answer = LedgerEntry("a", "stop", 0, 7, 3)
                ledger.append(Key(str(i), "f"), answer, {"content": PROMPTS[0].content})
                progress.add(answer)
    assert shown.getvalue() == f"collecting 30/200  1 answers/s  90 tokens (3/s)  cost 90{shown_limit}  0:02:50 left\n"


def test_a_budget_is_not_passed_and_says_what_was_not_asked(path):
    # A request is 16 at most, and 3 in truth; some time out, and count as 16.
    def behave(prompt, attempt):
        return Reply(seconds=0.5 if prompt in ("prompt 1", "prompt 2") and attempt == 1 else 0.0)

    with FakeServer(behave) as server:
        result = run(server, path, limit=70.0, timeout=0.25, concurrency=2)
        with Ledger(path) as ledger:
            budget = Budget(PRICES, ledger, 70.0)
            assert budget.at_risk == 32 and budget.spent == 3 * result.received
            assert 70 - 16 < budget.spent + budget.at_risk <= 70
        assert result.unasked == 20 - result.received and not result.failures
        # A rerun counts both.
        assert run(server, path, limit=70.0).received == 0
        assert run(server, path, limit=200.0).unasked == 0
    assert len(server.requests) == 22


def test_several_answers_to_a_prompt(path, tmp_path):
    out = tmp_path / "t.parquet"
    with FakeServer(lambda prompt, attempt: Reply(text=f"{attempt}")) as server:
        run(server, path, PROMPTS[:3], n=2, out=out, concurrency=1)
        # First answers come first, so that a budget ends evenly.
        assert server.prompts == ["prompt 0", "prompt 1", "prompt 2"] * 2
        run(server, path, PROMPTS[:3], n=3, out=out)
        assert len(server.requests) == 9
    table = pq.read_table(out).to_pylist()
    assert sorted((row["id"], row["sample"], row["teacher_response"]) for row in table) == [
        (f"id{i}", sample, str(sample + 1)) for i in range(3) for sample in range(3)
    ]
    # To training they are rows like others, and as prompts one.
    assert len(read_rows(out)) == 9
    assert read_prompts(out) == PROMPTS[:3]
