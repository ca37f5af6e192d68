"""Collects a teacher's answers from any OpenAI-compatible API into a Parquet file that trains as it is.

    python -m gadjax.collect --prompts=p.jsonl --base_url=http://127.0.0.1:8102/v1 --model=NAME \\
        --out=teacher.parquet

Prompts: JSONL or Parquet with `prompt` (text) or `content` (a chat), and maybe `id` and `category`; or a
text file with one prompt a line. The key comes from the environment variable OPENAI_API_KEY and is written
nowhere.

Every answer is kept in OUT.ledger.jsonl as it arrives. The same command again asks only for what is missing.
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

_PROMPTS = flags.DEFINE_string("prompts", None, "File of prompts: .jsonl, .parquet or .txt.", required=True)
_BASE_URL = flags.DEFINE_string("base_url", "https://api.openai.com/v1", "The API, up to /chat/completions.")
_MODEL = flags.DEFINE_string("model", None, "The model's name in requests.", required=True)
_MODEL_NAME = flags.DEFINE_string("model_name", None, "The model's name in the Parquet; default: --model.")
_OUT = flags.DEFINE_string("out", None, "Parquet file to write.", required=True)
_SYSTEM = flags.DEFINE_string("system", None, "System prompt before every chat; kept as a column.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.7, "Of the teacher's sampling.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Of the teacher's sampling.", lower_bound=0, upper_bound=1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 1536, "Tokens of an answer at most.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", None, "Sent with every request; not every server heeds it.")
_CONCURRENCY = flags.DEFINE_integer("concurrency", 16, "Requests under way at once.", lower_bound=1)
_TIMEOUT = flags.DEFINE_float("requests_timeout", 120.0, "Seconds for one attempt.", lower_bound=0.1)
_MAX_RETRIES = flags.DEFINE_integer("max_retries", 8, "Attempts after a prompt's first.", lower_bound=0)

_SHOWN_FAILURES = 5


def main(argv: list[str]) -> int:
    del argv
    out = pathlib.Path(_OUT.value)
    ledger_path = out.with_name(out.name + ".ledger.jsonl")
    _check_out(out, ledger_path)

    from gadjax.data.prompts import read_prompts

    prompts = read_prompts(_PROMPTS.value)
    if _SYSTEM.value:
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
        _BASE_URL.value,
        _MODEL.value,
        Sampling(_TEMPERATURE.value, _TOP_P.value, _MAX_TOKENS.value, _SEED.value),
        api_key=os.environ.get("OPENAI_API_KEY"),
        system=_SYSTEM.value or None,
        timeout=_TIMEOUT.value,
        max_retries=_MAX_RETRIES.value,
    )
    async with teacher:
        with Ledger(ledger_path) as ledger:
            kept = sum(collector.key(teacher, prompt) in ledger for prompt in prompts)
            try:
                with AnswerProgress(len(prompts), kept, teacher) as progress:
                    result = await collector.collect(
                        teacher, prompts, ledger, concurrency=_CONCURRENCY.value, on_answer=progress.advance
                    )
            except UserError as error:
                received = sum(collector.key(teacher, prompt) in ledger for prompt in prompts)
                if not received:
                    raise
                raise UserError(
                    f"{error}; {received} of {len(prompts)} answers are kept in {ledger_path}, and the same "
                    "command goes on from there"
                ) from None
            name = _MODEL_NAME.value or _MODEL.value
            rows = collector.write_parquet(out, teacher, prompts, ledger, model_name=name)
    print(f"{rows} answers ({kept} from before, {teacher.retries} attempts repeated): {out}")
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
    commands.run(main)
