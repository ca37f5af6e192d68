"""Evaluations of API models by a judge with known verdicts, all on loopback."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

from tests.evaluation.fake_judge import FakeJudge

KEY = "sk-very-secret-0123456789"
PROMPTS = 12


def quality(model: str, prompt: str) -> float:
    """The judge's own reference is 5; "good" is better on most prompts, "poor" is worse on all."""
    number = int(prompt.split()[-1])
    return {"judge": 5, "good": 8 if number % 4 else 5, "poor": 1 + number % 3, "worse": 1}[model]


def write_prompts(path: pathlib.Path) -> pathlib.Path:
    """Prompts with categories."""
    rows = [{"id": f"id{i}", "prompt": f"prompt {i}", "category": "odd" if i % 2 else "even"} for i in range(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluator(command, out: pathlib.Path, monkeypatch) -> Callable:
    """Runs the command on two API models and the judge, in this process."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(server: FakeJudge, prompts: pathlib.Path, *flags: str, models: str = "good=api:good,poor=api:poor"):
        return command(
            "gadjax.evaluate",
            f"--models={models}",
            f"--sets=vicuna={prompts}",
            f"--out={out}",
            f"--base_url={server.base_url}",
            "--judge=judge",
            "--max_retries=1",
            *flags,
        )

    return run


def read(path: pathlib.Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
