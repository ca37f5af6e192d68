import asyncio
import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from gadjax.data.prompts import Prompt
from gadjax.errors import UserError
from gadjax.teacher.batch import BatchCollector
from gadjax.teacher.batch_state import Batches
from gadjax.teacher.budget import Budget, Prices
from gadjax.teacher.client import TeacherClient
from gadjax.teacher.collector import questions
from gadjax.teacher.ledger import Ledger
from gadjax.teacher.protocol import RequestSettings
from gadjax.teacher.usage import Usage
from tests.teacher.fake_batches import FakeBatches
from tests.teacher.fake_server import Reply, error

KEY = "sk-very-secret-0123456789"
PROMPTS = [Prompt(f"id{i}", [{"role": "user", "content": f"prompt {i}"}], "numbers") for i in range(10)]
PRICES = Prices(input=0.0, output=1e6)  # a unit of currency for a token of answer, half in a batch


def run(server, folder, prompts=PROMPTS, *, n=1, limit=None, lines=None, **options):
    """Collects through batches into `folder`; returns the outcome and the ledger's rows."""

    async def work():
        teacher = TeacherClient(
            server.base_url,
            "fake",
            RequestSettings(0.7, 1.0, 16),
            api_key=KEY,
            first_wait=0.01,
            max_retries=3,
            timeout=2.0,
        )
        async with teacher:
            with Ledger(folder / "l") as ledger:
                collector = BatchCollector(
                    teacher,
                    ledger,
                    Batches(folder / "t.parquet"),
                    budget=None if limit is None else Budget(PRICES, ledger, limit),
                    **{"poll_seconds": 0.01, "tell": [].append if lines is None else lines.append} | options,
                )
                result = await collector.collect(questions(prompts, n))
                return result, [ledger[name] for name in ledger]

    return asyncio.run(work())


def test_requests_and_answers(tmp_path):
    lines = []
    with FakeBatches(lambda prompt, attempt: Reply(text=f"answer to {prompt}")) as server:
        result, rows = run(server, tmp_path, lines=lines)
        assert run(server, tmp_path)[0].received == 0
    assert (result.received, result.failures, result.unasked) == (10, {}, 0)
    assert {row["id"]: row["text"] for row in rows} == {f"id{i}": f"answer to prompt {i}" for i in range(10)}
    assert rows[0]["batch"] == "batch_0" and rows[0]["category"] == "numbers" and rows[0]["completion_tokens"] == 3
    assert server.requests[0] == {
        "model": "fake",
        "messages": PROMPTS[9].content,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 16,
    }
    assert len(server.batches) == 1 and server.keys_seen == {f"Bearer {KEY}"}
    assert lines == [
        "batch batch_0: 10 requests submitted", "batch batch_0: in_progress, 0 of 10",
        "batch batch_0: completed, 0 of 10",
    ]  # fmt: skip
    # Nothing is under way, and nothing says so.
    assert [file.name for file in tmp_path.iterdir()] == ["l"]


def test_requests_are_split_by_number_and_size(tmp_path):
    with FakeBatches() as server:
        run(server, tmp_path, n=2, batch_size=6)
        sizes = [len(server.files[body["input_file_id"]]["content"].splitlines()) for body in server.bodies]
        assert sizes == [6, 6, 6, 2]
        assert not {prompt: count for prompt, count in server.asked_again.items() if count != 2}
    (tmp_path / "b").mkdir()
    with FakeBatches() as server:
        run(server, tmp_path / "b", most_bytes=1000)
        contents = [server.files[body["input_file_id"]]["content"] for body in server.bodies]
        assert len(contents) > 2 and max(map(len, contents)) <= 1000
        assert sum(len(content.splitlines()) for content in contents) == 10
        with pytest.raises(UserError, match=r"prompt 'long' takes .* bytes; a batch's file can have 1000"):
            run(server, tmp_path / "b", [Prompt("long", [{"role": "user", "content": "x" * 1000}])], most_bytes=1000)


def test_what_expired_or_met_a_fault_is_asked_again_and_what_was_refused_is_reported(tmp_path):
    def behave(prompt, attempt):
        faults = {
            "prompt 1": Reply(drop=True),
            "prompt 2": error(500, "oops"),
            "prompt 3": Reply(body=b'{"choices": []}'),
            "prompt 4": error(400, f"not with {KEY}"),
        }
        return faults[prompt] if prompt in faults and (attempt == 1 or prompt == "prompt 4") else Reply()

    with FakeBatches(behave) as server:
        result, rows = run(server, tmp_path)
    assert result.received == 9 and len(rows) == 9
    assert result.failures == {"id4": "HTTP 400: not with ***"}
    assert server.asked_again == {"prompt 1": 2, "prompt 2": 2, "prompt 3": 2}


def test_a_request_is_in_three_batches_at_most(tmp_path):
    # Prompt 2 expires once, 3 twice, 1 always: there is an answer in every batch.
    last = {"prompt 1": 99, "prompt 2": 1, "prompt 3": 2}
    with FakeBatches(lambda prompt, attempt: Reply(drop=attempt <= last.get(prompt, 0))) as server:
        result, _ = run(server, tmp_path)
    assert result.failures == {"id1": "This request could not be executed."}
    assert server.asked_again == {"prompt 1": 3, "prompt 2": 2, "prompt 3": 3}


def test_an_api_that_answers_nothing_ends_the_run(tmp_path):
    with FakeBatches(lambda prompt, attempt: Reply(drop=True)) as server:
        server.end = "expired"
        with pytest.raises(UserError, match="no request of a batch was answered: This request could not be executed"):
            run(server, tmp_path)
        assert len(server.batches) == 1
    with FakeBatches() as server:
        server.end, server.errors = "failed", {"data": [{"code": "token_limit_exceeded", "message": "Too much queued"}]}
        with pytest.raises(UserError, match="answered: batch batch_0 failed: Too much queued"):
            run(server, tmp_path)
        # Mended, the same command asks all.
        server.end = "completed"
        assert run(server, tmp_path)[0].received == 10


class Once:
    """The first request of each kind fails."""

    def __init__(self, fault):
        self.fault, self.seen = fault, set()

    def __call__(self, method, path):
        kind = (method, path.rstrip("0123456789"))
        return None if kind in self.seen else self.seen.add(kind) or self.fault


@pytest.mark.parametrize(
    "fault",
    [error(500, "oops"), error(429, "slow", retry_after="0"), Reply(body=b"<html>"), Reply(body=b"{}"),
     Reply(drop=True, seconds=1), Reply(body=b"[1", seconds=1)],
    ids=["500", "429", "html", "empty", "done, then dropped", "done, then garbled"],
)  # fmt: skip
def test_faults_of_every_request_pass(tmp_path, fault):
    with FakeBatches() as server:
        server.fault = Once(fault)
        result, _ = run(server, tmp_path)
    assert result.received == 10 and not result.failures
    assert not server.asked_again and len(server.batches) == 1
    assert len([file for file in server.files.values() if file["filename"].startswith("gadjax-")]) == 1


def test_a_kill_between_two_answers_loses_and_repeats_none(tmp_path, monkeypatch):
    append, left = Ledger.append, [4]

    def killed(self, *arguments):
        if not left[0]:
            raise MemoryError("killed")
        left[0] -= 1
        append(self, *arguments)

    with FakeBatches() as server:
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(Ledger, "append", killed)
            run(server, tmp_path)
        result, rows = run(server, tmp_path)
    assert result.received == 6 and len(rows) == 10 and not server.asked_again
    assert len((tmp_path / "l").read_text().splitlines()) == 10


def test_a_batch_of_questions_that_were_since_changed_is_kept(tmp_path):
    """The answers are paid for, even if their prompts have left the file."""
    with FakeBatches() as server:
        server.fault = lambda method, path: error(400, "no") if path.startswith("/v1/batches/") else None
        with pytest.raises(
            UserError, match=r"/batches/batch_0: HTTP 400: no; what is under way stands in .*t\.parquet\.batches"
        ):
            run(server, tmp_path, PROMPTS[:4])
        server.fault = lambda method, path: None
        result, rows = run(server, tmp_path, PROMPTS[3:6])
    assert result.received == 6 and sorted(row["id"] for row in rows) == [f"id{i}" for i in range(6)]
    assert not server.asked_again


def test_what_the_api_did_not_take_is_planned_anew(tmp_path):
    """The requests are planned again with today's settings, since the old ones may be the reason."""
    with FakeBatches() as server:
        for path in ("/v1/files", "/v1/batches"):
            server.fault = lambda method, asked, path=path: (
                error(400, "no") if (method, asked) == ("POST", path) else None
            )
            with pytest.raises(UserError, match="HTTP 400: no"):
                run(server, tmp_path, PROMPTS[:4])
        server.fault = lambda method, path: None
        result, rows = run(server, tmp_path, PROMPTS[2:6])
    assert result.received == 4 and [row["id"] for row in rows] == ["id5", "id4", "id3", "id2"]
    assert sorted(server.prompts) == [f"prompt {i}" for i in range(2, 6)]


def test_a_cancelled_batch_is_not_sent_again(tmp_path):
    with FakeBatches(lambda prompt, attempt: Reply()) as server:
        server.end, server.lost = "cancelled", ("prompt 3", "prompt 4")
        result, rows = run(server, tmp_path)
        assert result.failures == dict.fromkeys(("id3", "id4"), "batch batch_0 cancelled") and len(rows) == 8
        assert len(server.batches) == 1
        server.end, server.lost = "completed", ()
        assert run(server, tmp_path)[0].received == 2


def test_a_batch_elsewhere_is_named(tmp_path):
    with FakeBatches() as server:
        server.fault = lambda method, path: error(400, "no") if method == "POST" and "batches" in path else None
        with pytest.raises(UserError, match="HTTP 400"):
            run(server, tmp_path)
        with FakeBatches() as other, pytest.raises(UserError, match=f"is under way at --base_url={server.base_url}"):
            run(other, tmp_path)
    (tmp_path / "t.parquet.batches.json").write_text("{}")
    with pytest.raises(UserError, match=r"batches\.json: damaged"):
        Batches(tmp_path / "t.parquet")


def test_an_api_without_batches_says_so(tmp_path):
    with FakeBatches() as server:
        server.fault = lambda method, path: Reply(status=404, body=b'{"detail": "Not Found"}')
        with pytest.raises(UserError, match=r"has no /files .* or the API does not offer this"):
            run(server, tmp_path)


def test_a_budget_counts_half_and_fills_batches_as_answers_come_in_cheaper(tmp_path):
    # 16 tokens at most are 8 units in a batch: 3 fit in 30. They come to 1.5 each.
    with FakeBatches() as server:
        result, rows = run(server, tmp_path, limit=30)
        assert len(server.files[server.bodies[0]["input_file_id"]]["content"].splitlines()) == 3
        assert (result.received, result.unasked) == (10, 0)
        assert len(server.batches) == 4
        result, rows = run(server, tmp_path, n=2, limit=30)
    assert 15 < len(rows) * 1.5 <= 30 and result.unasked == 20 - len(rows)
    assert 30 - len(rows) * 1.5 < 8
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.used[True] == Usage(7 * len(rows), 3 * len(rows)) and ledger.used[False] == Usage(0, 0)


def test_a_batchs_malformed_answers_are_counted_as_spent(tmp_path):
    malformed = Reply(body=b'{"choices": []}')  # with status 200: billed, for all that is known
    with FakeBatches(lambda prompt, attempt: malformed if prompt == "prompt 0" and attempt < 2 else Reply()) as server:
        result, _ = run(server, tmp_path, PROMPTS[:2], limit=100)
        assert result.received == 2
        with Ledger(tmp_path / "l") as ledger:
            assert (ledger.attempts_open, ledger.at_risk.completion) == (1, 16)
        # 16 at full price are set aside, two answers came to 1.5 each; the next, of 8 at most, does not fit.
        result, _ = run(server, tmp_path, PROMPTS[:3], limit=26)
    assert result.unasked == 1 and "prompt 2" not in server.prompts


def test_a_batch_that_is_gone_is_named(tmp_path):
    with FakeBatches() as server:
        server.fault = lambda method, path: error(404, "No batch") if path.startswith("/v1/batches/") else None
        with pytest.raises(UserError, match=r"/batches/batch_0 \(HTTP 404: No batch\).*\(take out a batch"):
            run(server, tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"key": ["a", "f", 0]}\n' * 10, b"[]\n" * 10])
def test_a_damaged_file_of_requests_is_named(tmp_path, content):
    with FakeBatches() as server:
        server.fault = lambda method, path: error(400, "no") if path.startswith("/v1/batches/") else None
        with pytest.raises(UserError, match="HTTP 400"):
            run(server, tmp_path)
        (requests,) = (tmp_path / "t.parquet.batches").iterdir()
        requests.write_bytes(content)
        with pytest.raises(UserError, match=r"batches/.*\.jsonl: cannot be read .* says what the answers of a batch"):
            run(server, tmp_path)


def command(repo, server, folder, *flags):
    line = [sys.executable, "-m", "gadjax.collect", f"--prompts={folder}/p.jsonl", f"--out={folder}/t.parquet"]
    return subprocess.Popen(
        [*line, "--model=fake", f"--base_url={server.base_url}", "--max_tokens=16", *flags],
        cwd=repo,
        env={**os.environ, "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kill_at_every_step_neither_submits_twice_nor_loses_a_batch(repo, tmp_path):
    rows = [{"id": prompt.id, "prompt": prompt.content[0]["content"]} for prompt in PROMPTS]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--batch", "--batch_size=6", "--batch_poll=0.05", "--input_price=1", "--output_price=1000", "--budget=1")
    killed, process = [], None

    def event(method, path, when):
        """Kills the client when a batch first reaches each step."""
        if (method, path, when) not in killed:
            killed.append((method, path, when))
            process.send_signal(signal.SIGKILL)
            process.wait()

    def behave(prompt, attempt):
        return Reply(drop=True) if prompt == "prompt 3" and attempt == 1 else Reply(text=f"answer to {prompt}")

    with FakeBatches(behave) as server:
        server.polls = 3
        server.event = event
        for _ in range(40):
            process = command(repo, server, tmp_path, *flags)
            stdout, stderr = process.communicate(timeout=60)
            if process.returncode != -signal.SIGKILL:
                break
            assert not (tmp_path / "t.parquet").exists()
            # Without --batch it does not ask what a batch will answer.
            if len(killed) == 9:
                live = command(repo, server, tmp_path)
                assert "batches are under way" in live.communicate(timeout=60)[1] and live.returncode == 2
    assert process.returncode == 0, stderr
    assert "10 prompts, 9 answered before, 1 in batches under way: 0 requests" in stdout
    kinds = {(method, path.rstrip("0123456789").partition("/file-")[0], when) for method, path, when in killed}
    assert {kind[:2] for kind in kinds} == {
        ("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/batches"), ("POST", "/v1/batches"),
        ("GET", "/v1/batches/batch_"),
    }  # fmt: skip
    assert len(kinds) == 10
    # Two batches, and one for the request that expired.
    assert len(server.batches) == 3 and server.asked_again == {"prompt 3": 2}
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["teacher_response"].to_pylist() == [f"answer to prompt {i}" for i in range(10)]
    assert "cost: 0.01503 of --budget=1" in stdout  # 10 answers of 3 and prompts of 7 tokens, at half the price
    written = [stdout, stderr, *(file.read_text() for file in tmp_path.glob("t.parquet.*"))]
    assert not [text for text in written if KEY in text]
