"""The command `python -m gadjax.collect`: in processes of its own, where it is killed, and else in this one."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from tests.teacher.fake_batches import FakeBatches
from tests.teacher.fake_server import FakeServer, Reply, error

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"id": f"id{i}", "prompt": f"prompt {i}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(server, prompts, out, *flags):
    given = f"--prompts={prompts}", f"--out={out}", "--model=fake", f"--base_url={server.base_url}", "--max_tokens=16"
    return "gadjax.collect", *given, *map(os.fsdecode, flags)


def started(repo, *given):
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "COLUMNS": "200"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-m", *arguments(*given)], cwd=repo, env=environment, **pipes)


def in_a_process(*given):
    process = started(*given)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


@pytest.fixture
def run(command, monkeypatch):
    """Runs the command in this process, which saves the time of a start; gives its status and what it printed."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *given: command(*arguments(*given))


def test_collects_and_goes_on(repo, tmp_path, prompts):
    out = tmp_path / "t.parquet"

    def behave(prompt, attempt):
        if prompt in ("prompt 5", "prompt 6") and attempt == 1:
            return error(400, f"not for {KEY}")
        return Reply(text=f"answer to {prompt}")

    with FakeServer(behave) as server:
        status, stdout, stderr = in_a_process(repo, server, prompts, out, "--model_name=Fake-1", "--seed=3")
        assert status == 1, stderr
        assert "58 answers" in stdout
        assert "2 of 60 prompts failed" in stderr and "id5: HTTP 400" in stderr
        assert pq.read_metadata(out).num_rows == 58
        status, stdout, again = in_a_process(repo, server, prompts, out, "--model_name=Fake-1", "--seed=3")
        assert status == 0, again
    assert "60 answers (58 from before" in stdout
    assert len(server.requests) == 62 and server.requests[0]["seed"] == 3
    rows = pq.read_table(out).to_pylist()
    assert [row["teacher_response"] for row in rows] == [f"answer to prompt {i}" for i in range(60)]
    assert {row["model"] for row in rows} == {"Fake-1"}
    assert server.keys[0] == f"Bearer {KEY}"
    # The key is in none of what was written; the text of the Parquet lies there compressed.
    ledger = (tmp_path / "t.parquet.ledger.jsonl").read_text()
    written = [ledger, stdout, stderr, again, str(rows), str(pq.read_schema(out).metadata), repr(out.read_bytes())]
    assert not [text for text in written if KEY in text]


def test_a_later_run_loses_nothing(run, tmp_path, prompts):
    """The file keeps its rows with fewer prompts, other settings, or a server that refuses all."""
    out = tmp_path / "t.parquet"
    few = tmp_path / "few.jsonl"
    few.write_text('{"id": "id3", "prompt": "prompt 3"}\n{"id": "new", "prompt": "prompt new"}\n')
    with FakeServer() as server:
        assert run(server, prompts, out)[0] == 0
        before = {row["id"]: row["teacher_response"] for row in pq.read_table(out).to_pylist()}
        server.behave = lambda prompt, attempt: error(400, "no")
        status, stdout, _ = run(server, few, out)
        assert (status, stdout.splitlines(keepends=True)[-1]) == (
            1,
            f"60 answers (60 from before, 0 attempts repeated, 59 to other prompts or with other settings): {out}\n",
        )
        assert {row["id"]: row["teacher_response"] for row in pq.read_table(out).to_pylist()} == before
        assert run(server, few, out, "--temperature=0.2")[0] == 1
        assert pq.read_metadata(out).num_rows == 60
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "few.jsonl", "p.jsonl", "t.parquet", "t.parquet.ledger.jsonl",
        ]  # fmt: skip
        fresh = tmp_path / "fresh.parquet"
        status, stdout, _ = run(server, few, fresh)
        assert (status, stdout.splitlines(keepends=True)[-1]) == (
            1,
            "0 answers (0 from before, 0 attempts repeated): no file is written\n",
        )
        assert not fresh.exists()


def test_kills_cost_no_more_than_what_was_under_way(repo, tmp_path, prompts):
    out, concurrency, kills = tmp_path / "t.parquet", 4, 3
    ledger = tmp_path / "t.parquet.ledger.jsonl"
    with FakeServer(lambda prompt, attempt: Reply(text=f"answer to {prompt}", seconds=0.05)) as server:
        for kill in range(kills):
            process = started(repo, server, prompts, out, f"--concurrency={concurrency}")
            asked = len(server.requests)
            deadline = time.monotonic() + 60
            # In the middle of the asking, some answers later.
            while len(server.requests) < asked + 6 and time.monotonic() < deadline:
                time.sleep(0.003 * (kill + 1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert not out.exists()
        stored = [json.loads(line)["id"] for line in ledger.read_text().splitlines() if line.endswith("}")]
        asked = len(server.requests)
        status, _, stderr = in_a_process(repo, server, prompts, out, f"--concurrency={concurrency}")
        assert status == 0, stderr
    assert 0 < len(stored) < 60
    # What was stored is not asked again, and repeats are bounded by what the kills cut off.
    assert not set(server.prompts[asked:]) & {f"prompt {name[2:]}" for name in stored}
    assert len(server.requests) - 60 <= concurrency * kills
    assert pq.read_table(out)["teacher_response"].to_pylist() == [f"answer to prompt {i}" for i in range(60)]


def test_an_interrupt_waits_for_what_is_paid_for(repo, tmp_path, prompts):
    """No request is made twice, and the answers so far are in the Parquet."""
    out = tmp_path / "t.parquet"
    with FakeServer(lambda prompt, attempt: Reply(text=f"answer to {prompt}", seconds=0.2)) as server:
        process = started(repo, server, prompts, out, "--concurrency=4")
        deadline = time.monotonic() + 60
        while len(server.requests) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted; the same command goes on from here" in stderr
        asked = len(server.requests)
        assert 6 <= asked < 60 and pq.read_metadata(out).num_rows == asked
        status, _, stderr = in_a_process(repo, server, prompts, out, "--concurrency=16")
        assert status == 0, stderr
    assert len(server.requests) == 60 == pq.read_metadata(out).num_rows


def test_what_cannot_go_on_says_where_the_answers_are(run, tmp_path, prompts):
    def behave(prompt, attempt):
        return error(401, f"bad key {KEY}") if prompt == "prompt 9" else Reply()

    with FakeServer(behave) as server:
        status, _, stderr = run(server, prompts, tmp_path / "t.parquet", "--concurrency=2")
    assert status == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert "refuses the key in OPENAI_API_KEY" in stderr and "t.parquet.ledger.jsonl" in stderr
    assert " of 60 answers are kept" in stderr and KEY not in stderr


def test_bad_flags_are_one_line(run, tmp_path, prompts, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    new, old = tmp_path / "t.parquet", tmp_path / "old.parquet"
    old.touch()
    with FakeServer() as server:
        for out, flags, message in [
            (tmp_path / "t.csv", [], "t.csv: the name must end in .parquet"),
            (tmp_path / "absent" / "t.parquet", [], "there is no folder"),
            ("~/absent/t.parquet", [], f"there is no folder {tmp_path}/absent"),
            (new, ["--base_url=http://host:abc/v1"], "--base_url=http://host:abc/v1: Port"),
            (old, [], "old.parquet.ledger.jsonl"),
            (new, ["--temperature=-1"], "temperature"),
            (new, ["--temperature=0", "--n=2"], "--n=2 with --temperature=0 pays 2 times"),
            (new, ["--request_fields={"], "--request_fields: not JSON"),
            (new, ["--request_fields=[1]"], "--request_fields: expected a JSON object"),
            (new, ['--request_fields={"n": 2}'], "--request_fields: n has a flag of its own"),
            (new, ['--request_fields={"top_p": 2}'], "--request_fields: top_p has a flag of its own"),
            (new, ['--request_fields={"x": "\\ud800"}'], "--request_fields: not JSON"),
            (new, ['--request_fields={"x": NaN}'], "--request_fields: not JSON"),
            (new, [b"--system=\xff"], "is not valid UTF-8"),
            (new, ["--seed=9999999999999999999"], "--seed=9999999999999999999"),
            (new, ["--max_tokens=2147483648"], "--max_tokens=2147483648"),
            (new, ["--budget=1"], "--budget needs --input_price and --output_price"),
            (new, ["--input_price=1"], "--output_price is missing"),
            (new, ["--budget=0"], "--budget=0: expected more than 0"),
        ]:
            status, _, stderr = run(server, prompts, out, *flags)
            assert status == 2 and stderr.startswith("error: ") and message in stderr, stderr
            assert stderr.count("\n") == 1
    assert not server.requests


PRICES = ("--input_price=1", "--output_price=1000")  # of an answer of 3 tokens, with its prompt of 7: 0.003007


def test_the_estimate_comes_before_the_first_request(run, tmp_path, prompts):
    out = tmp_path / "t.parquet"
    with FakeServer() as server:
        status, stdout, stderr = run(server, prompts, out, "--n=2", *PRICES, "--budget=1", "--dry_run")
        assert (status, stderr) == (0, "")
        assert not server.requests and not list(tmp_path.glob("t.parquet*"))
        # 8 or 9 characters are 2 or 3 tokens, with 4 for the turn.
        assert stdout.splitlines() == [
            "60 prompts x 2 answers: 120 requests",
            "input: about 820 tokens (estimated as characters / 4; --tokenizer=NAME counts)",
            "output: at most 1,920 tokens (--max_tokens=16 a request)",
            "cost: at most about 1.921; --budget=1 may end it before the last prompt",
        ]
        few = tmp_path / "few.jsonl"
        few.write_text("".join(prompts.read_text().splitlines(keepends=True)[:10]))
        assert run(server, few, out)[0] == 0
        status, stdout, _ = run(server, prompts, out, *PRICES, "--budget=4", "--dry_run")
    assert stdout.splitlines()[0] == "60 prompts, 10 answered before: 50 requests"
    assert stdout.splitlines()[-1] == "cost: at most about 0.8004; 0.03007 spent before; --budget=4 is enough"
    assert len(server.requests) == 10


def test_a_budget_ends_a_run_and_a_higher_one_goes_on(run, tmp_path, prompts):
    out = tmp_path / "t.parquet"
    marks = {"prompt 3": Reply(finish_reason="length"), "prompt 4": Reply(text=None)}
    with FakeServer(lambda prompt, attempt: marks.get(prompt, Reply())) as server:
        status, stdout, stderr = run(server, prompts, out, *PRICES, "--budget=0.1", "--concurrency=4")
        assert status == 3, stderr
        asked = len(server.requests)
        # What the next request could cost at most, 16 tokens, did not fit; what it would have cost, 3, does.
        assert 0.1 - 0.0165 < asked * 0.003007 <= 0.1
        assert f"--budget=0.1 is reached: {60 - asked} of 60 requests were not made" in stderr
        assert f"cost: {asked * 0.003007:.4g} of --budget=0.1" in stdout
        assert (
            "of these, training leaves out by default: 1 cut at --max_tokens (length 1), 1 without an answer to learn "
            "from (error 1)"
        ) in stdout
        assert run(server, prompts, out, *PRICES, "--budget=0.1")[0] == 3
        assert len(server.requests) == asked
        assert run(server, prompts, out, *PRICES, "--budget=1")[0] == 0
    assert len(server.requests) == 60 and pq.read_metadata(out).num_rows == 60


def test_kills_do_not_break_a_budget(repo, tmp_path, prompts):
    """The cost of requests under way at a kill is set aside."""
    out, concurrency = tmp_path / "t.parquet", 4
    flags = (*PRICES, "--budget=0.15", f"--concurrency={concurrency}")
    with FakeServer(lambda prompt, attempt: Reply(seconds=0.1)) as server:
        for _ in range(3):
            asked = len(server.requests)
            process = started(repo, server, prompts, out, *flags)
            deadline = time.monotonic() + 60
            while len(server.requests) < asked + 6 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        killed = len(server.requests)
        status, stdout, stderr = in_a_process(repo, server, prompts, out, *flags)
    assert status == 3, stderr
    assert killed >= 10
    # The server bills every request that it received, answered or not.
    assert len(server.requests) * 0.003007 <= 0.15
    assert "attempts of which no answer came" in stdout


def test_several_answers_a_prompt(run, command, tmp_path, prompts):
    out = tmp_path / "t.parquet"
    with FakeServer(lambda prompt, attempt: Reply(text=f"answer {attempt} to {prompt}")) as server:
        assert run(server, prompts, out, "--seed=5")[0] == 0
        status, stdout, stderr = run(server, prompts, out, "--seed=5", "--n=3")
        assert status == 0, stderr
    assert "180 answers (60 from before" in stdout
    assert sorted(request["seed"] for request in server.requests) == [5] * 60 + [6] * 60 + [7] * 60
    rows = pq.read_table(out).to_pylist()
    assert [(row["id"], row["sample"], row["seed"]) for row in rows] == [
        (f"id{i}", sample, 5 + sample) for i in range(60) for sample in range(3)
    ]
    assert [row["teacher_response"] for row in rows[:3]] == [f"answer {i} to prompt 0" for i in (1, 2, 3)]
    for file in (out, tmp_path / "t.parquet.ledger.jsonl"):
        finished = command("gadjax.collect", f"--inspect={file}")
        assert (finished.status, finished.err) == (0, "")
        assert finished.out.startswith(f"{file}: 180 answers\n")


def test_some_prompts_are_held_out(run, tmp_path, prompts):
    out, held = tmp_path / "t.parquet", tmp_path / "t.heldout.parquet"
    with FakeServer() as server:
        status, _, stderr = run(server, prompts, out, "--heldout=60")
        assert status == 2 and "60 different prompts" in stderr and not server.prompts
        for count in (12, 12, 20):
            status, stdout, _ = run(server, prompts, out, f"--heldout={count}", "--n=2")
            assert status == 0 and f"{out}, {held}" in stdout
            chosen = set(pq.read_table(held)["id"].to_pylist())
            assert len(chosen) == count and pq.read_metadata(held).num_rows == 2 * count
            trained = pq.read_table(out)["id"].to_pylist()
            assert len(trained) == 120 - 2 * count and not chosen & set(trained)
        assert len(server.prompts) == 120
        status, stdout, stderr = run(server, prompts, out, "--n=2")
        assert status == 2 and "t.heldout.parquet holds answers" in stderr and "--heldout as before" in stderr


def test_held_out_prompts_stay_held_out_when_a_collection_goes_on(run, tmp_path, prompts):
    out, held, ids = tmp_path / "t.parquet", tmp_path / "t.heldout.parquet", []
    first = lambda prompt, attempt: error(400, "no") if int(prompt[7:]) % 2 else Reply(text="answer")  # noqa: E731
    for behave in (first, None):
        with FakeServer(behave) as server:
            status, _, stderr = run(server, prompts, out, "--heldout=15")
            assert status == (1 if behave else 0), stderr
        ids.append([set(pq.read_table(file)["id"].to_pylist()) if file.exists() else set() for file in (out, held)])
    (trained, chosen), (all_trained, all_chosen) = ids
    assert len(all_chosen) == 15 and len(all_trained) == 45 and len(trained | chosen) == 30
    assert trained <= all_trained and chosen <= all_chosen


def test_a_missing_flag_is_named(command, tmp_path, prompts):
    finished = command("gadjax.collect", f"--prompts={prompts}", f"--out={tmp_path}/t.parquet")
    assert (finished.status, finished.err) == (2, "error: --model must have a value; --help lists the flags\n")


def test_limits_a_minute(run, tmp_path, prompts):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(prompts.read_text().splitlines(keepends=True)[:6]))
    with FakeServer() as server:
        assert run(server, few, tmp_path / "a.parquet", "--requests_per_minute=120")[0] == 0
        assert server.times[-1] - server.times[0] >= 1  # it is 4 / 120 minutes, less what the first takes to arrive
        # 2 or 3 tokens, 4 around them and 16 at most: 23, of which 10 are used.
        begun = len(server.times)
        assert run(server, few, tmp_path / "b.parquet", "--tokens_per_minute=1380")[0] == 0
        assert server.times[-1] - server.times[begun] >= 1


@pytest.mark.parametrize("batch", [False, True], ids=["live", "batch"])
def test_fields_of_requests(run, tmp_path, prompts, batch):
    """Newer models need another name of the limit, no temperature, and fields that the client does not know."""
    fields = '{"temperature": null, "top_p": null, "reasoning_effort": "low", "x": {"y": [1]}, "z": null}'
    flags = [f"--request_fields={fields}", "--limit_field=max_completion_tokens"]
    out = tmp_path / "t.parquet"
    with (FakeBatches if batch else FakeServer)() as server:
        flags += ["--batch", "--batch_poll=0.05"] if batch else []
        status, _, stderr = run(server, prompts, out, *flags)
        assert status == 0, stderr
    request = server.requests[0]
    assert request.pop("messages") and request == {
        "model": "fake",
        "max_completion_tokens": 16,
        "reasoning_effort": "low",
        "x": {"y": [1]},
    }
    row = pq.read_table(out).to_pylist()[0]
    assert (row["temperature"], row["top_p"], row["max_tokens"]) == (None, None, 16)
    assert json.loads(row["request_fields"]) == {"reasoning_effort": "low", "x": {"y": [1]}}
