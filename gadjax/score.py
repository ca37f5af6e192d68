"""Scores answers with a discriminator, as a reward model: the higher, the more like the teacher's.

    python -m gadjax.score --model=/tmp/demo/export/discriminator --data=answers.jsonl --out=scores.jsonl

The data is JSONL with `prompt` (text) or `content` (a chat) and `response` on each line, as gadjax.generate writes it,
or Parquet in the teacher's schema. A prompt may come many times. Each line of the output holds `content`, `response`,
`score`, and the row's `id` if it has one, in the order of the data. Rows that the API marked as no answer (a refusal, a
filter), or cut before the answer began, are left out and counted. A response that was cut (`finish_reason`) is scored
at its last token, any other response at its end of turn. Text is tokenised anew, so a sampled response may get other
ids than it was sampled with. Compare scores of one model only.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.files import expand

if TYPE_CHECKING:
    import numpy as np

    from gadjax.data.schema import Messages
    from gadjax.rollout.chat_model import Network
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command's flags. Not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", None, "Directory or hub id of a discriminator.", required=True)
    flags.DEFINE_string("data", None, "Prompts with responses: .jsonl or .parquet.", required=True)
    flags.DEFINE_string("out", None, "JSONL file to write.", required=True)
    flags.DEFINE_integer("max_response_length", 0, "Cut longer responses here, as the run did; 0: none.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 16, "Responses scored at once.", lower_bound=1)
    flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "auto: float32 on CPU, else bfloat16.")


class ScoredRow(NamedTuple):
    """A response to a chat, to be scored."""

    content: Messages  # ends with a user's message
    response: str
    ended: bool  # False: cut, so that its turn has no end
    id: str | None = None  # the row's own; several rows may share it


def read_answers(path: str | os.PathLike[str]) -> tuple[list[ScoredRow], int]:
    """Reads the rows of a file that can be scored.

    Returns:
      The rows, at least one, in the order of the file; and the number of rows that are left out, because the API marked
      them as no answer or cut them before the answer began.

    Raises:
      UserError: naming the file, the line (counted from 1) or row (from 0), and the reason.
    """
    path = expand(path)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"--data={path}: expected a file that ends in {' or '.join(readers)}")
    if not path.is_file():
        raise UserError(f"--data={path}: no such file")
    rows = list(readers[path.suffix](path))
    if not rows:
        raise UserError(f"--data={path}: the file has no rows to score")
    answers = [row for row in rows if row is not None]
    if not answers:
        raise UserError(f"--data={path}: no row to score: all {len(rows)} are marked as no answer (`finish_reason`)")
    return answers, len(rows) - len(answers)


def score_answers(
    network: Network,
    answers: Sequence[ScoredRow],
    *,
    max_response_length: int = 0,
    batch_size: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """[answers] float32, the discriminator's score of each answer at its last token.

    Args:
      network: with the "score" head.
      answers: at least one.
      max_response_length: longer responses are cut here, and have no end of turn; 0 cuts none.
      batch_size: answers that are scored at once, rounded up to a multiple of the mesh's batch shards.
      done: called after each batch with the number of answers so far.
    """
    import jax
    import numpy as np

    from gadjax.data.bins import multiple_of, round_up
    from gadjax.data.packing import one_per_row, padded
    from gadjax.distill.forward import sequence_scores
    from gadjax.parallel import mesh as meshes

    model, params, tokenizer, mesh = network
    prompts = tokenizer.prompt_ids_batch([answer.content for answer in answers])
    responses = tokenizer.response_ids_batch([a.response for a in answers], [a.ended for a in answers])
    if max_response_length:
        responses = [ids[:max_response_length] for ids in responses]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    remedy = "leave out long prompts or lower --max_response_length"
    model.config.check_length(max(lengths), "the longest prompt and response of --data", remedy)

    score = jax.jit(lambda params, *fields: sequence_scores(model, params, one_per_row(*fields)))
    size = multiple_of(min(batch_size, len(answers)), meshes.batch_shards(mesh))
    order = np.argsort(lengths, kind="stable")
    scores = np.zeros(len(answers), np.float32)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        filled = np.resize(chosen, size)  # the last batch repeats answers, so that all have one shape
        fields: Any = []
        for sequences in (prompts, responses):
            sequences = [sequences[i] for i in filled]
            fields += padded(sequences, round_up(max(map(len, sequences)), 8))
        fields = jax.device_put(tuple(fields), meshes.rows(mesh))
        scores[chosen] = np.asarray(score(params, *fields))[: len(chosen)]
        done(start + len(chosen))
    return scores


def _read_jsonl(path: pathlib.Path) -> Iterator[ScoredRow | None]:
    """One row at a time; None for a row that is left out."""
    from gadjax.data.prompts import chat_of, read_jsonl, text_of
    from gadjax.data.schema import status_of

    for place, row in read_jsonl(path):
        content, response = chat_of(row, place), text_of(row, "response", place)
        if response is None:
            raise UserError(f"{place}: `response` is missing; expected text")
        status = status_of(response, row.get("finish_reason"))
        yield None if status == "marked" else ScoredRow(content, response, status != "cut", text_of(row, "id", place))


def _read_parquet(path: pathlib.Path) -> Iterator[ScoredRow | None]:
    from gadjax.data.prompts import read_columns, text_of
    from gadjax.data.schema import read_rows

    rows = read_rows(path)
    ids = [text_of(row, "id", place) for place, row in read_columns(path, ["id"])]
    for i in range(len(rows)):
        yield None if rows.marked[i] else ScoredRow(rows.messages(i), rows.answer(i), not rows.cut[i], ids[i])


def main(argv: list[str]) -> None:
    del argv
    from rich.console import Console

    from gadjax.progress import RunProgress
    from gadjax.rollout.chat_model import load_network

    answers, left_out = read_answers(FLAGS.data)
    with commands.jsonl_output(FLAGS.out) as write:
        commands.use_compilation_cache()
        network = load_network(FLAGS.model, "score", dtype=FLAGS.dtype)
        with RunProgress(console=Console(stderr=True)) as progress:
            done = lambda count: progress.update("scoring", count, len(answers))  # noqa: E731
            done(0)
            limits = {"max_response_length": FLAGS.max_response_length, "batch_size": FLAGS.batch_size}
            scores = score_answers(network, answers, **limits, done=done)
        for answer, score in zip(answers, scores, strict=True):
            row = {"content": answer.content, "response": answer.response, "score": float(score)}
            write(row if answer.id is None else {"id": answer.id} | row)
    without = f" ({left_out} rows without an answer are left out)" if left_out else ""
    print(f"{len(answers)} scores, mean {scores.mean():.4g}{without}: {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    commands.run(main)
