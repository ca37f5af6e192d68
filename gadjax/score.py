"""Scores answers with a discriminator, as a reward model: the higher, the more like the teacher's.

    python -m gadjax.score --model=/tmp/demo/export/discriminator --data=answers.jsonl --out=scores.jsonl

The data is JSONL with `prompt` (text) or `content` (a chat) and `response` on each line, as gadjax.generate writes it,
or any data that training reads (docs/formats.md). A prompt may come many times. Each line of the output holds
`content`, `response`, `score`, and the row's `id` if it has one, in the order of the data. Rows that the API marked as
no answer (a refusal, a filter), or cut before the answer began, are left out and counted. A response that was cut
(`finish_reason`) is scored at its last token, any other response at its end of turn. Text is tokenised anew, so a
sampled response may get other ids than it was sampled with. Compare scores of one model only.

A discriminator of the likelihood kind, which is a causal language model, scores by how much likelier an answer is under
it than under the generator: log p(answer) - log q(answer) in nats. Name the generator with --generator, and with
--temperature the temperature that its answers are drawn with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from gadjax import commands
from gadjax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from gadjax.data.chats import Messages
    from gadjax.rollout.chat_model import CheckedNetwork, Network
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command's flags. Not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", None, "Directory or hub id of a discriminator.", required=True)
    flags.DEFINE_string("data", None, "Prompts with responses: a file, folder, glob or dataset.", required=True)
    flags.DEFINE_string("out", None, "JSONL file to write.", required=True)
    flags.DEFINE_string("generator", None, "Directory or hub id of the generator, for a discriminator that needs it.")
    flags.DEFINE_float(
        "temperature", None, f"That --generator draws with; default: {commands.TEMPERATURE}. Above 0.", lower_bound=0
    )
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
    """Reads the rows of a file, a folder, a glob or a dataset that can be scored.

    Returns:
      The rows, at least one, in the order of the file; and the number of rows that are left out, because the API marked
      them as no answer or cut them before the answer began.

    Raises:
      UserError: naming the file, the line (counted from 1) or row (from 0), and the reason.
    """
    from gadjax.data import sources
    from gadjax.data.dataset_name import TFDS
    from gadjax.data.table_files import has_columns

    rows: list[ScoredRow | None] = []
    for file in sources.find(path, "--data"):
        rows += _read_columns(file) if file.startswith(TFDS) or has_columns(file) else _read_text(file)
    if not rows:
        raise UserError(f"--data={path}: the file has no rows to score")
    answers = [row for row in rows if row is not None]
    if not answers:
        raise UserError(f"--data={path}: no row to score: all {len(rows)} are marked as no answer (`finish_reason`)")
    return answers, len(rows) - len(answers)


def score_answers(
    discriminator: CheckedNetwork,
    answers: Sequence[ScoredRow],
    *,
    generator: CheckedNetwork | None = None,
    temperature: float = commands.TEMPERATURE,
    max_response_length: int = 0,
    batch_size: int = 16,
    done: Callable[[int], None] = lambda count: None,
    load: Callable[[CheckedNetwork], Network] = lambda network: network.load(decodes=False),
) -> np.ndarray:
    """[answers] float64, the discriminator's score of each answer.

    Args:
      discriminator: of either kind (`gadjax.evaluation.scoring`).
      answers: at least one.
      generator: for a discriminator of the likelihood kind; None for the other.
      temperature: of the generator.
      max_response_length: longer responses are cut here, and have no end of turn; 0 cuts none.
      batch_size: answers that are scored at once, rounded up to a multiple of the mesh's batch shards.
      done: called after each batch with the number of answers so far, twice as many in all if there is a generator.
      load: reads the weights of a network. They are freed before those of the other come, unless `load` keeps them.

    Raises:
      UserError: generator and discriminator read a chat as other tokens, or a model has no room for an answer.
    """
    from gadjax.evaluation import scoring

    both = [network for network in (discriminator, generator) if network]
    chats, tokenizer = [answer.content for answer in answers], discriminator.tokenizer
    if generator:
        names = generator.name, discriminator.name
        scoring.check_tokenizers(generator.tokenizer, tokenizer, chats, names)
    prompts = tokenizer.prompt_ids_batch(chats)
    responses = tokenizer.response_ids_batch([a.response for a in answers], [a.ended for a in answers])
    if max_response_length:
        responses = [ids[:max_response_length] for ids in responses]
    longest = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    remedy = "leave out long prompts or lower --max_response_length"
    for network in both:
        network.config.check_length(longest, "the longest prompt and response of --data", remedy)

    def values(network: CheckedNetwork, temperature: float, before: int) -> np.ndarray:
        """The network's values. Its weights are freed on return, so that one network is in memory at a time."""
        model, params, _, mesh = load(network)
        return scoring.sequence_values(
            *(model, params, mesh, prompts, responses),
            pooling=network.pooling,
            temperature=temperature,
            batch_size=min(batch_size, len(answers)),
            done=lambda count: done(before + count),
        )

    nats = values(generator, temperature, 0) if generator else None
    return scoring.as_scores(discriminator.head, values(discriminator, 1.0, len(answers) if generator else 0), nats)


def _read_columns(file: str) -> Iterator[ScoredRow | None]:
    """The rows of a file or dataset that is kept by columns; None for a row that is left out."""
    from gadjax.data.schema import read_rows

    rows = read_rows(file)
    for i in range(len(rows)):
        yield None if rows.marked[i] else ScoredRow(rows.messages(i), rows.answer(i), not rows.cut[i], rows.id(i))


def _read_text(file: str) -> Iterator[ScoredRow | None]:
    """The same of a file of lines, whose answers may be empty."""
    from gadjax.data.chats import status_of
    from gadjax.data.formats import Recogniser
    from gadjax.data.prompts import split, text_of
    from gadjax.data.table_files import read_text_rows

    recogniser = Recogniser(prompts=True)
    for place, row in read_text_rows(file):
        own = row.get("response") is not None
        content, responses = split(row, place, recogniser.of_row(row, place), answers=not own)
        for response in [text_of(row, "response", place)] if own else responses:
            status = status_of(response, row.get("finish_reason"))
            if response is None and status != "marked":
                raise UserError(f"{place}: `response` is missing; expected text")
            cut = status == "cut"
            yield None if status == "marked" else ScoredRow(content, response or "", not cut, text_of(row, "id", place))


def _networks() -> tuple[CheckedNetwork, CheckedNetwork | None]:
    """The discriminator and, if it is of the likelihood kind, the generator.

    Raises:
      UserError: one of them cannot be used, or the flags do not fit the kind.
    """
    from gadjax.rollout.chat_model import check_network

    discriminator = check_network(FLAGS.model, "score", "lm", dtype=FLAGS.dtype)
    if FLAGS.temperature == 0:
        raise UserError("--temperature=0: expected the temperature above 0 that answers are drawn with")
    if discriminator.head == "lm" and not FLAGS.generator:
        raise UserError(
            f"{discriminator.name} is a causal language model, whose score compares it with the generator: give "
            "--generator=DIR too, such as a run's export/generator, or name a token classifier"
        )
    if discriminator.head == "score":
        for flag in ("generator", "temperature"):
            if FLAGS[flag].value is not None:
                raise UserError(f"--{flag} is of the likelihood kind, but {discriminator.name} is a token classifier")
        return discriminator, None
    return discriminator, check_network(FLAGS.generator, "lm", dtype=FLAGS.dtype, flag="--generator")


def main(argv: list[str]) -> None:
    del argv
    from rich.console import Console

    from gadjax.progress import RunProgress

    answers, left_out = read_answers(FLAGS.data)
    with commands.jsonl_output(FLAGS.out) as write:
        commands.use_compilation_cache()
        discriminator, generator = _networks()
        with RunProgress(console=Console(stderr=True)) as progress:
            total = len(answers) * (2 if generator else 1)
            done = lambda count: progress.update("scoring", count, total)  # noqa: E731
            done(0)
            scores = score_answers(
                discriminator,
                answers,
                generator=generator,
                temperature=FLAGS.temperature or commands.TEMPERATURE,
                max_response_length=FLAGS.max_response_length,
                batch_size=FLAGS.batch_size,
                done=done,
            )
        for answer, score in zip(answers, scores, strict=True):
            row = {"content": answer.content, "response": answer.response, "score": float(score)}
            write(row if answer.id is None else {"id": answer.id} | row)
    without = f" ({left_out} rows without an answer are left out)" if left_out else ""
    print(f"{len(answers)} scores, mean {scores.mean():.4g}{without}: {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    commands.run(main)
