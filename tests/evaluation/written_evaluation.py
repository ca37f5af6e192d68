"""A small evaluation's folder, as gadjax.evaluate writes it, for tests of what reads it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

MODELS = ("before", "GAD")
SETS = ("tea", "maths")
PROMPTS = 3  # of each set
DIFFERENCE = {"difference": 30.0, "low": 26.0, "high": 34.0}  # of the judge's scores


def write(directory: pathlib.Path, *, run: pathlib.Path | None = None) -> dict[str, Any]:
    """Writes results.json, answers, verdicts and a run of two stages; returns the results.

    Prompt n of a set is "SET question n"; WHO's answer to it is "WHO says SET n". GAD's answers to odd prompts are cut;
    the models' judge scores differ most on the last prompt of each set.
    """
    for name in SETS:
        for who in ("teacher", "reference", *MODELS):
            rows = [
                {
                    "id": f"{name}-{n}",
                    "content": [{"role": "user", "content": f"{name} question {n}"}],
                    "response": f"{who} says {name} {n}",
                    "finish_reason": "length" if who == "GAD" and n % 2 else "stop",
                    "tokens": 10 + n,
                    "category": "odd" if n % 2 else "even",
                }
                for n in range(PROMPTS)
            ]
            write_rows(directory / "answers" / name / f"{who}.jsonl", rows)
    verdicts = [
        {
            "set": name,
            "id": f"{name}-{n}",
            "model": model,
            "score": 5 + n if model == "GAD" else 5 - n,
            "reference_score": 5,
            "order": "ab",
            "text": f"verdict on {model} {n}",
        }
        for name in SETS
        for model in MODELS
        for n in range(PROMPTS)
    ]
    write_rows(directory / "verdicts.jsonl", verdicts)
    nothing = dict.fromkeys(("step", "stage", "best_of"))
    results = {
        "format": 1,
        "gadjax": "0.0.0",
        "created": "2026-01-02T03:04:05+00:00",
        "models": [
            nothing | {"name": "before", "source": "/models/base", "kind": "export"},
            nothing | {"name": "GAD", "source": "/runs/one", "kind": "checkpoint", "step": 1200, "stage": "gad"},
        ],
        "sets": [
            {"name": name, "path": f"/sets/{name}.jsonl", "prompts": PROMPTS, "sha256": "ab" * 32, "has_teacher": True}
            for name in SETS
        ],
        "settings": {"max_response_length": 64, "temperature": 0},
        "judge": {
            "model": "some-judge",
            "base_url": "https://user:hunter2@judge.example/v1",
            "reference_model": "some-judge",
            "malformed": 1,
            "retried": 2,
        },
        "scores": {name: {"before": scores(0.3), "GAD": scores(0.8), "teacher": plain()} for name in SETS},
        "comparisons": {
            name: [
                {"a": "GAD", "b": "before", "win": 2, "tie": 0, "lose": 1, "p": 0.0421, "test": "sign test"}
                | DIFFERENCE
            ]
            for name in SETS
        },
        "verdicts": "verdicts.jsonl",
        "run": None if run is None else {"workdir": str(run)},
    }
    if run is not None:
        write_run(run)
    save(directory, results)
    return results


def save(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes results.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results))


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSONL, all text as ASCII escapes: any Python string can be in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def scores(level: float) -> dict[str, Any]:
    """A model's figures on a set; the higher the level, the better."""
    kl = {"reverse_per_token": 2 - level, "forward_per_token": 3 - level}
    kl |= {"reverse_per_response": 30.0, "forward_per_response": 40.0}
    kl |= {f"{name}_low": value - 0.1 for name, value in kl.items()} | {
        f"{name}_high": value + 0.1 for name, value in kl.items()
    }
    return plain() | {
        "rouge_l": level / 2,
        "ngram_f1": {str(n): level / (2 * n) for n in range(1, 6)},
        "judge": {"score": 60 * level, "low": 60 * level - 4, "high": 60 * level + 4, "judged": 3, "malformed": 0},
        "two_sample": {"accuracy": 1 - level / 2, "low": 0.95 - level / 2, "high": 1.0, "prompts": 3},
        "kl": kl | {"samples": 4, "forward_on": "drawn", "teacher": "open", "teacher_temperature": 0.7},
    }


def plain() -> dict[str, Any]:
    """The figures that every model and the teacher have."""
    return {
        "prompts": PROMPTS,
        **dict.fromkeys(("rouge_l", "ngram_f1", "judge", "two_sample", "kl")),
        "lengths": {
            "mean": 11.0,
            "p50": 11.0,
            "p95": 12.0,
            "truncated": 0.05,
            "histogram": {"edges": [0, 8, 16, 24], "counts": [0, 3, 0]},
        },
        "distinct": {"1": 0.5, "2": 0.75, "3": 1.0},
    }


def write_run(workdir: pathlib.Path) -> None:
    """Writes metrics.jsonl and samples.jsonl of a run of 30 steps of SeqKD and 10 of GAD."""
    train = [
        {"kind": "train", "stage": "seqkd", "step": n, "generator/loss": 4 - n / 10, "generator/entropy": 2.0}
        for n in range(1, 31)
    ]
    train += [
        {
            "kind": "train",
            "stage": "gad",
            "step": n,
            "generator/loss": 0.01 * (-1) ** n,
            "generator/kl": n / 1000,
            "reward/mean": n / 10 - 4,
            "discriminator/accuracy": 0.75,
            "speed/sampled_tokens_per_second": 6000.0 + n,
            "new/figure": 1.0 * n,
        }
        for n in range(31, 41)
    ]
    train[4] |= {"generator/loss": None, "nonfinite": {"generator/loss": "nan"}}
    held = [
        {"kind": "heldout", "stage": stage, "step": step, "heldout/nll": nll}
        for stage, step, nll in (("before", 0, 7.5), ("seqkd", 30, 3.25), ("gad", 40, 3.0))
    ]
    held[-1] |= {"heldout/two_sample": 0.55, "heldout/two_sample_low": 0.5, "heldout/two_sample_high": 0.6}
    write_rows(workdir / "metrics.jsonl", [held[0], *train[:30], held[1], *train[30:], held[2]])
    samples = [
        {
            "step": step,
            "stage": stage,
            "row": 0,
            "prompt": "held-out question",
            "teacher": "t",
            "student": f"{stage} {step}",
        }
        for stage, step in (("before", 0), ("seqkd", 20), ("seqkd", 30), ("gad", 40))
    ]
    write_rows(workdir / "samples.jsonl", samples)
