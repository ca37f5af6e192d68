"""Collects a teacher's answers from any OpenAI-compatible API into a Parquet file that trains as it is.

    python -m gadjax.collect --prompts=p.jsonl --base_url=http://127.0.0.1:8102/v1 --model=NAME \\
        --out=teacher.parquet

Prompts: JSONL or Parquet with `prompt` (text) or `content` (a chat), and maybe `id` and `category`; or a
text file with one prompt a line. The key comes from the environment variable OPENAI_API_KEY and is written
nowhere.

Every answer is kept in OUT.ledger.jsonl as it arrives. The same command again asks only for what is missing.
The Parquet holds every answer of the ledger: also those to prompts that have left the file of prompts, and those
drawn with other settings, as its columns say. For a file without them give another --out.
The system prompt is a column of its own, not part of the chat that the student learns to answer.

Ends with status 0 when every prompt is answered, 1 when some failed, 2 when nothing could go on.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.files import expand

FLAGS = flags.FLAGS
_SHOWN_FAILURES = 5


def define_flags() -> None:
    """Those of the command; not on import, so that commands can be imported together."""
    flags.DEFINE_string("prompts", None, "File of prompts: .jsonl, .parquet or .txt.", required=True)
    flags.DEFINE_string("base_url", "https://api.openai.com/v1", "The API, up to /chat/completions.")
    flags.DEFINE_string("model", None, "The model's name in requests.", required=True)
    flags.DEFINE_string("model_name", None, "The model's name in the Parquet; default: --model.")
    flags.DEFINE_string("out", None, "Parquet file to write.", required=True)
    flags.DEFINE_string("system", None, "System prompt before every chat; kept as a column.")
    flags.DEFINE_float("temperature", 0.7, "Of the teacher's sampling.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Of the teacher's sampling.", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer("max_tokens", 1536, "Tokens of an answer at most.", lower_bound=1)
    flags.DEFINE_integer("seed", None, "Sent with every request; not every server heeds it.")
    flags.DEFINE_integer("concurrency", 16, "Requests under way at once.", lower_bound=1)
    flags.DEFINE_float("requests_timeout", 120.0, "Seconds for one attempt.", lower_bound=0.1)
    flags.DEFINE_integer("max_retries", 8, "Attempts after a prompt's first.", lower_bound=0)


def main(argv: list[str]) -> int:
    del argv
    out = expand(FLAGS.out)
    ledger_path = out.with_name(out.name + ".ledger.jsonl")
    _check_out(out, ledger_path)

    from gadjax.data.prompts import read_prompts

    prompts = read_prompts(FLAGS.prompts)
    if FLAGS.system:
        for prompt in prompts:
            if prompt.content[0]["role"] == "system":
                raise UserError(f"--system: prompt {prompt.id!r} has a system message of its own; drop one")
    return asyncio.run(_run(prompts, out, ledger_path))


async def _run(prompts: list, out: pathlib.Path, ledger_path: pathlib.Path) -> int:
    from gadjax.teacher import collector
    from gadjax.teacher.client import Sampling, Teacher
    from gadjax.teacher.ledger import Ledger
    from gadjax.teacher.progress import AnswerProgress

    teacher = Teacher(
        FLAGS.base_url,
        FLAGS.model,
        Sampling(FLAGS.temperature, FLAGS.top_p, FLAGS.max_tokens, FLAGS.seed),
        api_key=os.environ.get("OPENAI_API_KEY"),
        name=FLAGS.model_name,
        system=FLAGS.system or None,
        timeout=FLAGS.requests_timeout,
        max_retries=FLAGS.max_retries,
    )
    async with teacher:
        with Ledger(ledger_path) as ledger:
            collector.check_complete(out, ledger)
            kept = sum(collector.key(teacher, prompt) in ledger for prompt in prompts)
            try:
                with AnswerProgress(len(prompts), kept, teacher) as progress:
                    result = await collector.collect(
                        teacher, prompts, ledger, concurrency=FLAGS.concurrency, on_answer=progress.advance
                    )
            except UserError as error:
                received = sum(collector.key(teacher, prompt) in ledger for prompt in prompts)
                if not received:
                    raise
                raise UserError(
                    f"{error}; {received} of {len(prompts)} answers are kept in {ledger_path}, and the same "
                    "command goes on from there"
                ) from None
            rows = collector.write_parquet(out, teacher, prompts, ledger)
    counts = f"{rows - result.received} from before, {teacher.retries} attempts repeated"
    if others := rows - kept - result.received:
        counts += f", {others} to other prompts or with other settings"
    print(f"{rows} answers ({counts}): {out if rows else 'no file is written'}")
    return _report(result.failures, len(prompts))


def _report(failures: dict[str, str], asked: int) -> int:
    if not failures:
        return 0
    print(f"{len(failures)} of {asked} prompts failed; the same command asks them again:", file=sys.stderr)
    for name, reason in list(failures.items())[:_SHOWN_FAILURES]:
        print(f"  {name}: {reason}", file=sys.stderr)
    if len(failures) > _SHOWN_FAILURES:
        print(f"  and {len(failures) - _SHOWN_FAILURES} more", file=sys.stderr)
    return 1


def _check_out(out: pathlib.Path, ledger: pathlib.Path) -> None:
    if out.suffix != ".parquet":
        raise UserError(f"--out={out}: the name must end in .parquet")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    if out.exists() and not ledger.exists():
        raise UserError(f"--out={out}: the file is there, but not its {ledger.name}; give another name")


if __name__ == "__main__":
    define_flags()
    commands.run(main)
