"""Answers prompts with an exported student, or any supported model.

    python -m gadjax.generate --model=/tmp/demo/export/generator --prompts=p.jsonl --out=o.jsonl --temperature=0

Prompts are read as by gadjax.collect: JSONL or Parquet with `prompt` (text) or `content` (a chat), or a text file with
one prompt a line. Each line of the output holds `id`, `content`, `response`, `finish_reason` ("stop", or "length" if
the limit cut the response) and `tokens`.

Answers are appended as they come. After a stop or a kill the same command draws those that are missing; they are the
same as without the stop, since an answer depends on the seed, its prompt and the prompt's place in the file. At the end
the lines are put into the order of the prompts. OUT.settings.json, beside the output, says which model, prompts and
settings its answers have: with others, the command refuses the file. A finished file is left as it is.

With a discriminator, several answers to each prompt are drawn and the best one is kept:

    python -m gadjax.generate --model=/tmp/demo/export/generator --prompts=p.jsonl --out=o.jsonl \
        --best_of=8 --discriminator=/tmp/demo/export/discriminator

Lines then hold the answer's `score` too. --all writes all answers, in the order of the prompts and draws; `best` says
which is the best to its prompt. Draws are kept in OUT.draws.jsonl as they come; the output is written when all of them
are scored. The first draw is the answer that the same command gives without --best_of. Compare scores of one prompt
only.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.files import expand

if TYPE_CHECKING:
    import numpy as np

    from gadjax.answer_file import Settings
    from gadjax.data.prompts import Prompt
    from gadjax.evaluation.best_of import Draw
    from gadjax.progress import RunProgress
    from gadjax.rollout.chat_model import ChatModel, CheckedNetwork, Reply
    from gadjax.rollout.engine import Completion
    from gadjax.rollout.sampler import Sampling
FLAGS = flags.FLAGS
LIMIT = 512  # tokens of a response, unless the user says otherwise


def define_flags() -> None:
    """Defines the command's flags. Not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", None, "Hugging Face directory or hub id.", required=True)
    flags.DEFINE_string("prompts", None, "Prompts: a file, a folder, a glob or a dataset.", required=True)
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


def main(argv: list[str]) -> int:
    del argv
    from rich.console import Console

    from gadjax.data.prompts import read_prompts
    from gadjax.progress import RunProgress

    _check_best_of()
    out = expand(FLAGS.out)
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; give the name of a file")
    prompts = read_prompts(FLAGS.prompts)
    commands.use_compilation_cache()
    task = _checked(prompts, out)
    try:
        with RunProgress(console=Console(stderr=True)) as progress:
            said = (_answer_best if task.discriminator else _answer)(task, progress)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{said}: {out}")
    return 0


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


class _Task(NamedTuple):
    """The prompts, and the models that answer them and choose among their answers. All are checked."""

    prompts: Sequence[Prompt]
    ids: Sequence[np.ndarray]  # of the prompts' tokens
    generator: CheckedNetwork
    discriminator: CheckedNetwork | None
    out: pathlib.Path
    settings: Settings  # all that the answers depend on

    @property
    def draws(self) -> pathlib.Path:
        """The file that keeps the draws of --best_of until the answers are chosen."""
        return self.out.with_name(self.out.name + ".draws.jsonl")


def _checked(prompts: Sequence[Prompt], out: pathlib.Path) -> _Task:
    """The task of this command. Raises a `UserError` if a model cannot be used, or has no room for an answer."""
    from gadjax.evaluation import scoring
    from gadjax.models.hf_files import weights_fingerprint
    from gadjax.rollout.chat_model import check_network, response_limits

    def identity(network: CheckedNetwork) -> str:
        tokenizer = network.tokenizer.fingerprint()[:16]
        return f"weights {weights_fingerprint(network.path)}, tokenizer {tokenizer}"

    generator, discriminator = check_network(FLAGS.model, "lm", dtype=FLAGS.dtype), None
    chats, tokenizer = [prompt.content for prompt in prompts], generator.tokenizer
    if FLAGS.discriminator:
        discriminator = check_network(FLAGS.discriminator, "score", "lm", dtype=FLAGS.dtype, flag="--discriminator")
        scoring.check_tokenizers(tokenizer, discriminator.tokenizer, chats, (generator.name, discriminator.name))
    ids = tokenizer.prompt_ids_batch(chats)
    fit = FLAGS.max_response_length is None
    limits = response_limits(generator.config, ids, FLAGS.max_response_length or LIMIT, fit=fit)
    if discriminator:
        longest = max(len(prompt) + most for prompt, most in zip(ids, limits, strict=True))
        where = f"{discriminator.name}, the longest prompt with its response"
        discriminator.config.check_length(longest, where, "shorten the prompt or lower --max_response_length")

    asked = json.dumps([(prompt.id, prompt.content) for prompt in prompts])
    flags_of_draws = "temperature", "top_p", "top_k", "seed", "best_of", "all"
    settings = {
        "model": identity(generator),
        "prompts": f"{len(prompts)} prompts, hash {hashlib.sha256(asked.encode()).hexdigest()[:16]}",
        "max_response_length": f"{LIMIT} or what fits" if fit else FLAGS.max_response_length,
        "dtype": str(generator.config.dtype),
        "discriminator": identity(discriminator) if discriminator else None,
        **{name: FLAGS[name].value for name in flags_of_draws},
    }
    return _Task(prompts, ids, generator, discriminator, out, settings)


def _answer(task: _Task, progress: RunProgress) -> str:
    """Appends one answer to each prompt that has none yet; returns what was done."""
    from gadjax.answer_file import AnswerFile, check_settings
    from gadjax.rollout.chat_model import as_reply

    names = [prompt.id for prompt in task.prompts]
    with AnswerFile(task.out, names, ("response", "finish_reason", "tokens")) as answers:
        check_settings(task.out, [task.out, task.draws], task.settings)
        answers.read()
        kept = answers.kept
        for place, (completion,) in _draws(task, kept, progress):
            answers.append(place, _line(task.prompts[place], as_reply(task.generator.tokenizer, completion)))
        answers.sort()
    if len(kept) == len(names):
        return f"all {len(names)} answers are there already"
    return f"{len(names)} answers ({len(kept)} from before)" if kept else f"{len(names)} answers"


def _answer_best(task: _Task, progress: RunProgress) -> str:
    """Draws several answers to each prompt, and writes the best, or all with --all; returns what was done.

    The draws are appended to a file of their own, which is removed when the answers are chosen and written.
    """
    from gadjax.answer_file import AnswerFile, check_settings
    from gadjax.evaluation import best_of

    assert task.discriminator is not None
    if task.out.exists() and task.out.stat().st_size:
        check_settings(task.out, [task.out], task.settings)
        task.draws.unlink(missing_ok=True)
        return f"all {len(task.prompts) * (FLAGS.best_of if FLAGS.all else 1)} answers are there already"
    with AnswerFile(task.draws, [prompt.id for prompt in task.prompts], ("draws",)) as drawn:
        check_settings(task.out, [task.draws], task.settings)
        drawn.read()
        for place, group in _draws(task, drawn.kept, progress):
            drawn.append(place, {"id": task.prompts[place].id, "draws": [_kept_draw(one) for one in group]})
        rows = [drawn.row(place) for place in range(len(task.prompts))]
        groups = [[_draw_of(*draw) for draw in row["draws"]] for row in rows]
        total = FLAGS.best_of * len(groups)
        scored = _counted(progress, "scoring", total)
        scores = best_of.score_draws(task.discriminator, task.ids, groups, done=scored)
        with commands.jsonl_output(task.out) as write:
            _write_best(task, groups, scores, write)
        task.draws.unlink()
    means = f"mean score {scores.max(axis=1).mean():.4g}, of all draws {scores.mean():.4g}"
    if FLAGS.all:
        return f"{total} answers, {FLAGS.best_of} to each prompt; of the best: {means}"
    return f"{len(groups)} answers, each the best of {FLAGS.best_of}: {means}"


def _write_best(task: _Task, groups: Sequence[Sequence[Draw]], scores: np.ndarray, write: Callable) -> None:
    """Writes the lines of the best draws, or of all with --all."""
    from gadjax.evaluation import best_of
    from gadjax.rollout.chat_model import Reply

    decode = task.generator.tokenizer.decode
    best = best_of.places(scores).tolist()
    for prompt, group, of_prompt, place in zip(task.prompts, groups, scores, best, strict=True):
        for number, draw in enumerate(group):
            more = {"score": float(of_prompt[number])} | ({"best": number == place} if FLAGS.all else {})
            if FLAGS.all or number == place:
                write(_line(prompt, Reply(decode(draw.tokens), len(draw.tokens), draw.ended)) | more)


def _draws(task: _Task, kept: set[int], progress: RunProgress) -> Iterator[tuple[int, list[Completion]]]:
    """Yields the place of each prompt that is not kept, and --best_of answers to it, as soon as they have ended.

    The generator's weights are freed at the end, before the discriminator's come.
    """
    from gadjax.rollout.chat_model import chat_model

    total = len(task.prompts)
    if len(kept) == total:
        return
    if kept:
        progress.say(f"{len(kept)} of {total} prompts were answered before")
    done = _counted(progress, "generating", total)
    model = chat_model(task.generator.load(), FLAGS.batch_size)
    chats, fit = [prompt.content for prompt in task.prompts], FLAGS.max_response_length is None
    draws = _sampling(model), FLAGS.best_of
    done(len(kept))
    ended = model.complete_as_they_end(chats, *draws, seed=FLAGS.seed, fit=fit, kept=kept)
    for count, (place, group) in enumerate(ended, start=len(kept) + 1):
        yield place, group
        done(count)


def _kept_draw(completion: Completion) -> tuple[list[int], float, bool]:
    """A draw as it stands in the file: ids, log-likelihood, whether it ended."""
    return completion.tokens.tolist(), float(completion.logprobs.sum(dtype="float64")), completion.ended


def _draw_of(tokens: list[int], nats: float, ended: bool) -> Draw:
    """A draw of the file."""
    import numpy as np

    from gadjax.evaluation.best_of import Draw

    return Draw(np.array(tokens, np.int32), nats, ended)


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
