"""Answers prompts with an exported student, or any supported model.

    python -m gadjax.generate --model=/tmp/demo/export/generator --prompts=p.jsonl --out=o.jsonl --temperature=0

Prompts are read as by gadjax.collect: JSONL or Parquet with `prompt` (text) or `content` (a chat), or a text file with
one prompt a line. Each line of the output holds `id`, `content`, `response`, `finish_reason` ("stop", or "length" if
the limit cut the response) and `tokens`.

With a discriminator, several answers to each prompt are drawn and the best one is kept:

    python -m gadjax.generate --model=/tmp/demo/export/generator --prompts=p.jsonl --out=o.jsonl \
        --best_of=8 --discriminator=/tmp/demo/export/discriminator

Lines then hold the answer's `score` too. --all writes all answers, in the order of the prompts and draws; `best` says
which is the best to its prompt. The first draw is the answer that the same command gives without --best_of. Compare
scores of one prompt only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from gadjax import commands
from gadjax.errors import UserError

if TYPE_CHECKING:
    from gadjax.data.prompts import Prompt
    from gadjax.data.schema import Messages
    from gadjax.progress import RunProgress
    from gadjax.rollout.chat_model import ChatModel, CheckedNetwork, Reply
    from gadjax.rollout.engine import Completion
    from gadjax.rollout.sampler import Sampling
FLAGS = flags.FLAGS
LIMIT = 512  # tokens of a response, unless the user says otherwise


def define_flags() -> None:
    """Defines the command's flags. Not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", None, "Hugging Face directory or hub id.", required=True)
    flags.DEFINE_string("prompts", None, "File of prompts: .jsonl, .parquet or .txt.", required=True)
    flags.DEFINE_string("out", None, "JSONL file to write.", required=True)
    flags.DEFINE_float("temperature", commands.TEMPERATURE, "0 is greedy.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens of this total mass.", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer("top_k", 0, "Draw from the likeliest k tokens; 0: from all.", lower_bound=0)
    flags.DEFINE_integer(
        "max_response_length",
        None,
        f"Most tokens of a response; default: {LIMIT}, or fewer if the model has no room.",
        lower_bound=1,
    )
    flags.DEFINE_integer("batch_size", 64, "Prompts decoded at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the sampling.")
    flags.DEFINE_integer("best_of", 1, "Answers drawn for each prompt, of which the best is kept.", lower_bound=1)
    flags.DEFINE_string("discriminator", None, "Directory or hub id of the discriminator that says which is the best.")
    flags.DEFINE_boolean("all", False, "Writes all answers of --best_of, each with its score.")
    flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "auto: float32 on CPU, else bfloat16.")


def main(argv: list[str]) -> None:
    del argv
    from rich.console import Console

    from gadjax.data.prompts import read_prompts
    from gadjax.progress import RunProgress

    _check_best_of()
    prompts = read_prompts(FLAGS.prompts)
    with commands.jsonl_output(FLAGS.out) as write:
        commands.use_compilation_cache()
        with RunProgress(console=Console(stderr=True)) as progress:
            answer = _answer_best if FLAGS.discriminator else _answer
            said = answer(prompts, write, progress)
    print(f"{said}: {FLAGS.out}")


def _check_best_of() -> None:
    """Refuses flags of the best of several that do not fit each other."""
    several = FLAGS.best_of > 1
    if FLAGS.discriminator and not several:
        raise UserError("--discriminator chooses among several answers to a prompt: give --best_of=2 or more")
    if several and not FLAGS.discriminator:
        raise UserError(f"--best_of={FLAGS.best_of} needs --discriminator=DIR, which says which answer is the best")
    if FLAGS.all and not several:
        raise UserError("--all writes all answers of --best_of, but there is one to a prompt: give --best_of=2 or more")
    for name, value in (("temperature", 0), ("top_k", 1), ("top_p", 0)):
        if several and FLAGS[name].value == value:
            raise UserError(
                f"--best_of={FLAGS.best_of} with --{name}={value}: all answers to a prompt would be the same; raise "
                f"--{name}, or leave --best_of and --discriminator out"
            )


def _answer(prompts: Sequence[Prompt], write: Callable[[dict[str, Any]], None], progress: RunProgress) -> str:
    """Writes one answer to each prompt; returns what was done."""
    from gadjax.rollout.chat_model import load_chat_model

    model = load_chat_model(FLAGS.model, dtype=FLAGS.dtype, batch_size=FLAGS.batch_size)
    sampling = _sampling(model)
    done = _counted(progress, "generating", len(prompts))
    chats, fit = [prompt.content for prompt in prompts], FLAGS.max_response_length is None
    replies = model.answer(chats, sampling, seed=FLAGS.seed, fit=fit, done=done)
    for prompt, reply in zip(prompts, replies, strict=True):
        write(_line(prompt, reply))
    return f"{len(prompts)} answers"


def _answer_best(prompts: Sequence[Prompt], write: Callable[[dict[str, Any]], None], progress: RunProgress) -> str:
    """Draws several answers to each prompt, and writes the best, or all with --all; returns what was done."""
    from gadjax.evaluation import best_of, scoring
    from gadjax.rollout.chat_model import as_reply, check_network, response_limits

    generator = check_network(FLAGS.model, "lm", dtype=FLAGS.dtype)
    discriminator = check_network(FLAGS.discriminator, "score", "lm", dtype=FLAGS.dtype, flag="--discriminator")
    chats, tokenizer = [prompt.content for prompt in prompts], generator.tokenizer
    scoring.check_tokenizers(tokenizer, discriminator.tokenizer, chats, (generator.name, discriminator.name))
    ids = tokenizer.prompt_ids_batch(chats)
    limit, fit = FLAGS.max_response_length or LIMIT, FLAGS.max_response_length is None
    limits = response_limits(generator.config, ids, limit, fit=fit)
    longest = max(len(prompt) + most for prompt, most in zip(ids, limits, strict=True))
    where = f"{discriminator.name}, the longest prompt with its response"
    discriminator.config.check_length(longest, where, "shorten the prompt or lower --max_response_length")

    groups = _draw(generator, chats, _counted(progress, "generating", len(prompts)))
    total = FLAGS.best_of * len(prompts)
    scores = best_of.score_draws(discriminator, ids, groups, done=_counted(progress, "scoring", total))
    best = best_of.places(scores).tolist()
    for prompt, group, of_prompt, place in zip(prompts, groups, scores, best, strict=True):
        for number, completion in enumerate(group):
            more = {"score": float(of_prompt[number])} | ({"best": number == place} if FLAGS.all else {})
            if FLAGS.all or number == place:
                write(_line(prompt, as_reply(tokenizer, completion)) | more)
    means = f"mean score {scores.max(axis=1).mean():.4g}, of all draws {scores.mean():.4g}"
    if FLAGS.all:
        return f"{total} answers, {FLAGS.best_of} to each prompt; of the best: {means}"
    return f"{len(prompts)} answers, each the best of {FLAGS.best_of}: {means}"


def _draw(generator: CheckedNetwork, chats: Sequence[Messages], done: Callable[[int], None]) -> list[list[Completion]]:
    """--best_of answers to each chat. The generator's weights are freed on return, before the discriminator's come."""
    from gadjax.rollout.chat_model import chat_model

    model = chat_model(generator.load(), FLAGS.batch_size)
    fit = FLAGS.max_response_length is None
    return model.complete(chats, _sampling(model), FLAGS.best_of, seed=FLAGS.seed, fit=fit, done=done)


def _sampling(model: ChatModel) -> Sampling:
    return model.sampling(
        max_response_length=FLAGS.max_response_length or LIMIT,
        temperature=FLAGS.temperature,
        top_p=FLAGS.top_p,
        top_k=FLAGS.top_k,
    )


def _counted(progress: RunProgress, what: str, total: int) -> Callable[[int], None]:
    """A function that shows how many are done, and has shown 0."""
    progress.update(what, 0, total)
    return lambda count: progress.update(what, count, total)


def _line(prompt: Prompt, reply: Reply) -> dict[str, Any]:
    """A line of the output."""
    return {
        "id": prompt.id,
        "content": prompt.content,
        "response": reply.text,
        "finish_reason": "stop" if reply.ended else "length",
        "tokens": reply.tokens,
    }


if __name__ == "__main__":
    define_flags()
    commands.run(main)
