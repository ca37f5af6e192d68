"""Scores answers with a discriminator, as a reward model: the higher, the more like the teacher's.

    python -m gadjax.score --model=/tmp/demo/export/discriminator --data=answers.jsonl --out=scores.jsonl

The data is JSONL with `prompt` (text) or `content` (a chat) and `response` on each line, as gadjax.generate writes it,
or Parquet in the teacher's schema. Each line of the output holds `content`, `response` and `score`, in the order of the
data. A response that was cut (`finish_reason`) is scored at its last token, any other at the end of its turn. Text is
encoded anew, so a sampled response may get other ids than it was sampled with. Compare scores of one model only.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from absl import flags

from gadjax import commands
from gadjax.errors import UserError

if TYPE_CHECKING:
    from gadjax.rollout.chat_model import Network
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Those of the command; not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", None, "Directory or hub id of a discriminator.", required=True)
    flags.DEFINE_string("data", None, "Prompts with responses: .jsonl or .parquet.", required=True)
    flags.DEFINE_string("out", None, "JSONL file to write.", required=True)
    flags.DEFINE_integer(
        "max_response_length", 0, "Cut longer responses here, as the run did; 0 cuts none.", lower_bound=0
    )
    flags.DEFINE_integer("batch_size", 16, "Responses scored at once.", lower_bound=1)
    flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "auto: float32 on CPU, else bfloat16.")


class Answer(NamedTuple):
    """A response to a chat."""

    content: list[dict[str, str]]  # ends with a user turn
    response: str
    ended: bool  # False: cut, so its turn has no end


def read_answers(path: str) -> list[Answer]:
    """The rows of a file, in its order.

    Raises:
      UserError: naming the file, the line (counted from 1) or row (from 0), and the reason.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--data={path}: expected a file that ends in .jsonl or .parquet")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--data={path}: no such file")
    return _read_parquet(path) if suffix == ".parquet" else _read_jsonl(path)


def score_answers(
    network: Network,
    answers: Sequence[Answer],
    *,
    max_response_length: int = 0,
    batch_size: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """The discriminator's score of each answer, at its last token: [answers] float32.

    Args:
      network: with the "score" head.
      answers: at least one.
      max_response_length: longer responses are cut here, without an end of turn; 0 cuts none.
      batch_size: answers scored at once, rounded up to a multiple of the batch's shards.
      done: called with the number of answers after each batch.
    """
    from gadjax.data.packing import one_per_row, round_up
    from gadjax.distill.forward import sequence_scores
    from gadjax.parallel import mesh as layout

    model, params, tokenizer, mesh = network
    prompts = tokenizer.prompt_ids_batch([answer.content for answer in answers])
    responses = tokenizer.response_ids_batch([a.response for a in answers], [a.ended for a in answers])
    if max_response_length:
        responses = [ids[:max_response_length] for ids in responses]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    model.config.check_length(max(lengths), "the longest prompt and response of --data")

    score = jax.jit(lambda params, *fields: sequence_scores(model, params, one_per_row(*fields)))
    shards = layout.batch_shards(mesh)
    size = -(-min(batch_size, len(answers)) // shards) * shards
    order = np.argsort(lengths, kind="stable")
    scores = np.zeros(len(answers), np.float32)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        filled = np.resize(chosen, size)  # whole batches: one shape
        fields = []
        for sequences in (prompts, responses):
            sequences = [sequences[i] for i in filled]
            width = round_up(max(map(len, sequences)), 8)
            fields.append(np.stack([np.pad(ids, (0, width - len(ids))) for ids in sequences]))
            fields.append(np.array([len(ids) for ids in sequences], np.int32))
        fields = jax.device_put(tuple(fields), layout.rows(mesh))
        scores[chosen] = np.asarray(score(params, *fields))[: len(chosen)]
        done(start + len(chosen))
    return scores


def _read_jsonl(path: str) -> list[Answer]:
    from gadjax.data.prompts import read_prompts
    from gadjax.data.schema import CUT_REASONS

    prompts = read_prompts(path)
    answers = []
    with open(path, encoding="utf-8-sig") as file:
        lines = [(number, json.loads(line)) for number, line in enumerate(file, start=1) if line.strip()]
    for prompt, (number, row) in zip(prompts, lines, strict=True):
        response = row.get("response")
        if not isinstance(response, str):
            raise UserError(f"{path}:{number}: `response` is {type(response).__name__}; expected text")
        ended = row.get("finish_reason") not in CUT_REASONS
        answers.append(_answer(prompt.content, response, ended, f"{path}:{number}"))
    return answers


def _read_parquet(path: str) -> list[Answer]:
    from gadjax.data.schema import read_rows

    rows = read_rows(path)
    return [_answer(rows.messages(i), rows.answer(i), not rows.cut[i], rows.where(i)) for i in range(len(rows))]


def _answer(content: list[dict[str, str]], response: str, ended: bool, where: str) -> Answer:
    if not response and not ended:
        raise UserError(f"{where}: the response is empty and was cut, so it has no token to score; leave the row out")
    return Answer(content, response, ended)


def main(argv: list[str]) -> None:
    del argv
    from rich.console import Console
    from rich.progress import Progress

    from gadjax.rollout.chat_model import load_network

    answers = read_answers(FLAGS.data)
    with commands.jsonl_output(FLAGS.out) as write:
        commands.use_compilation_cache()
        network = load_network(FLAGS.model, "score", dtype=FLAGS.dtype)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("scoring", total=len(answers))
            scores = score_answers(
                network,
                answers,
                max_response_length=FLAGS.max_response_length,
                batch_size=FLAGS.batch_size,
                done=lambda count: progress.update(task, completed=count),
            )
        for answer, score in zip(answers, scores, strict=True):
            write({"content": answer.content, "response": answer.response, "score": float(score)})
    print(f"{len(answers)} scores, mean {scores.mean():.4g}: {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    commands.run(main)
