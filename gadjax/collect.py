"""Collects a teacher's answers from any OpenAI-compatible API into a Parquet file, ready for training.

    python -m gadjax.collect --prompts=p.jsonl --base_url=http://127.0.0.1:8102/v1 --model=NAME \\
        --out=teacher.parquet

Prompts are JSONL or Parquet with `prompt` (text) or `content` (a chat), and maybe `id` and `category`; or a text file
with one prompt per line; or a dataset: hf:OWNER/NAME/SPLIT:FIELD of the Hugging Face hub (with /CONFIG before SPLIT if
it has several), or tfds:NAME/SPLIT:FIELD of TensorFlow Datasets, prepared in array_record files. FIELD holds text or
chats; turns of a chat behind the last user turn are left out. The key comes from the environment variable
OPENAI_API_KEY and is written nowhere.

Every answer is kept in OUT.ledger.jsonl as it arrives. The same command again asks only for what is missing. The
Parquet holds every answer of the ledger, with its settings in columns: also answers to prompts that have left the file
of prompts, and answers drawn with other settings. For a file without them, give another --out. The system prompt is a
column of its own, not part of the chat that the student learns to answer.

For models that do not take `max_tokens`, give --limit_field=max_completion_tokens. For models that do not take a
temperature, give --request_fields='{"temperature": null, "top_p": null}'. Other fields there are sent as they are, and
kept as a column.

Before it asks, the command prints how many requests and tokens are to come and, with --input_price and --output_price
(of a million tokens, in any currency), what they cost; --dry_run ends there. --budget, in the same currency, counts
what OUT.ledger.jsonl says was spent. It sets aside the most that every request under way can cost, so that the bill
stays below it. While the API refuses requests for load, fewer than --concurrency are under way, and all of them wait
as long as a Retry-After says.

--batch asks through the Batch API, at half the price (--batch_price), and waits for it. After a stop or a kill, the
same command continues with the batches under way, which OUT.batches.json lists. Requests that expired or met a fault
are asked again, in at most three batches.

Answers that were cut, filtered, refused or empty are kept, counted, and marked in `finish_reason`. By default, training
leaves them out.

--inspect=FILE shows what such a file, or a ledger, holds. --publish=FILE --out=DATA_DIR/NAME/VERSION writes it as a
TFDS dataset, which training reads as tfds:DATA_DIR/NAME/VERSION/train, or as tfds:NAME/train if TFDS_DATA_DIR is
DATA_DIR.

The exit status is 0 if every prompt is answered, 1 if some failed, 2 if the command could not continue, 3 if the budget
was reached before the last prompt, and 130 after Ctrl-C, which waits for the answers under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.files import expand
from gadjax.teacher.protocol import LIMIT_FIELDS, request_fields

if TYPE_CHECKING:
    from gadjax.data.prompts import Prompt
    from gadjax.teacher.batch_state import Batches
    from gadjax.teacher.budget import Budget, Prices
    from gadjax.teacher.client import TeacherClient
    from gadjax.teacher.collector import Collected, Question
    from gadjax.teacher.ledger import Ledger

FLAGS = flags.FLAGS
_SHOWN_FAILURES = 5


def define_flags() -> None:
    """Defines the command's flags; not done on import, so that several commands can be imported."""
    flags.DEFINE_string("prompts", None, "File of prompts (.jsonl, .parquet, .txt), or dataset (hf:..., tfds:...).")
    flags.DEFINE_string("base_url", "https://api.openai.com/v1", "The API, up to /chat/completions.")
    flags.DEFINE_string("model", None, "Name of the model in requests.")
    flags.DEFINE_string("model_name", None, "Name of the model in the Parquet; default: --model.")
    flags.DEFINE_string("out", None, "Parquet file to write.")
    flags.DEFINE_string("system", None, "System prompt before every chat; kept as a column.")
    flags.DEFINE_float("temperature", 0.7, "Temperature of the teacher's sampling.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Top-p of the teacher's sampling.", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer("max_tokens", 1536, "Longest answer, in tokens.", lower_bound=1, upper_bound=2**31 - 1)
    flags.DEFINE_enum("limit_field", LIMIT_FIELDS[0], LIMIT_FIELDS, "Field of requests that holds --max_tokens.")
    flags.DEFINE_string("request_fields", None, "More fields of requests, a JSON object; null leaves one out.")
    flags.DEFINE_integer(
        "seed", None, "Seed in requests; some servers ignore it.", lower_bound=-(2**62), upper_bound=2**62
    )
    flags.DEFINE_integer("n", 1, "Answers to each prompt, each by its own request.", lower_bound=1)
    flags.DEFINE_integer("concurrency", 16, "Requests under way at once, at most.", lower_bound=1)
    flags.DEFINE_float("requests_per_minute", None, "Requests that begin in a minute, at most.", lower_bound=0.001)
    flags.DEFINE_float("tokens_per_minute", None, "Tokens in and out in a minute, at most.", lower_bound=1)
    flags.DEFINE_float("requests_timeout", 120.0, "Seconds that one attempt may take.", lower_bound=0.1)
    flags.DEFINE_integer("max_retries", 8, "Attempts at a prompt after the first.", lower_bound=0)
    flags.DEFINE_float("input_price", None, "Price of a million tokens of prompts.", lower_bound=0)
    flags.DEFINE_float("output_price", None, "Price of a million tokens of answers.", lower_bound=0)
    flags.DEFINE_float("budget", None, "What --out may cost, earlier runs included, in the prices' currency.")
    flags.DEFINE_string("tokenizer", None, "Hugging Face directory or hub id that counts the estimate's input.")
    flags.DEFINE_bool("batch", False, "Ask through the Batch API: cheaper, within a day.")
    flags.DEFINE_float("batch_price", 0.5, "Prices with --batch, as a part of the others.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 50_000, "Requests in a batch, at most.", lower_bound=1, upper_bound=50_000)
    flags.DEFINE_float("batch_poll", 60.0, "Seconds between looks at the batches.", lower_bound=0.01)
    flags.DEFINE_bool("dry_run", False, "Print what the command would take, and end.")
    flags.DEFINE_string("inspect", None, "Teacher's Parquet or ledger: print what it holds, and end.")
    flags.DEFINE_string("publish", None, "Teacher's Parquet: write it as a TFDS dataset to --out, and end.")


def main(argv: list[str]) -> int:
    del argv
    if FLAGS.inspect is not None:
        from gadjax.teacher.inspect import inspect

        for line in inspect(expand(FLAGS.inspect)):
            print(line)
        return 0
    for name in ("out",) if FLAGS.publish is not None else ("prompts", "model", "out"):
        if FLAGS[name].value is None:
            raise UserError(f"--{name} must have a value; --help lists the flags")
    out = expand(FLAGS.out)
    if FLAGS.publish is not None:
        return _publish(out)
    ledger_path = out.with_name(out.name + ".ledger.jsonl")
    _check_out(out, ledger_path)
    prices = _prices()
    request_fields(FLAGS.request_fields, "--request_fields")  # checked before anything is read
    if FLAGS.n > 1 and FLAGS.temperature == 0:
        raise UserError(f"--n={FLAGS.n} with --temperature=0 pays {FLAGS.n} times for one answer; raise --temperature")

    from gadjax.data.prompts import read_prompts

    prompts = read_prompts(FLAGS.prompts)
    if FLAGS.system:
        for prompt in prompts:
            if prompt.content[0]["role"] == "system":
                raise UserError(f"--system: prompt {prompt.id!r} has a system message of its own; drop one")
    return asyncio.run(_run(prompts, prices, out, ledger_path))


def _publish(out: pathlib.Path) -> int:
    from gadjax.data import tfds

    folder = tfds.publish(expand(FLAGS.publish), out)
    name, version = folder.parent.name, folder.name
    print(f"{folder}: train with --config.data.train=tfds:{folder}/train, or open")
    print(f"tfds.data_source({f'{name}:{version}'!r}, data_dir={str(folder.parent.parent)!r})")
    return 0


def _prices() -> Prices | None:
    from gadjax.teacher.budget import Prices

    if FLAGS.budget is not None and FLAGS.budget <= 0:
        raise UserError(f"--budget={FLAGS.budget:g}: expected more than 0")
    if FLAGS.input_price is None and FLAGS.output_price is None:
        if FLAGS.budget is not None:
            raise UserError("--budget needs --input_price and --output_price, of a million tokens, to count with")
        return None
    for name in ("input_price", "output_price"):
        if FLAGS[name].value is None:
            raise UserError(f"--{name} is missing; give it with the other price, 0 where it is free")
    return Prices(FLAGS.input_price, FLAGS.output_price, FLAGS.batch_price)


async def _run(prompts: list[Prompt], prices: Prices | None, out: pathlib.Path, ledger_path: pathlib.Path) -> int:
    from gadjax.teacher import collector
    from gadjax.teacher.batch_state import Batches
    from gadjax.teacher.budget import Budget, estimate
    from gadjax.teacher.ledger import Ledger

    def show_estimate(to_ask: list[Question], **options: Any) -> None:
        names: dict[str, Any] = {name: FLAGS[name].value for name in ("max_tokens", "tokenizer", "batch")}
        names |= {"samples": FLAGS.n, "system": FLAGS.system or None, "prices": prices, "limit": FLAGS.budget}
        print("\n".join(estimate(prompts, [one.prompt for one in to_ask], **names, **options)), flush=True)

    asked = collector.questions(prompts, FLAGS.n)
    async with _teacher() as teacher:
        if FLAGS.dry_run and not ledger_path.exists():
            show_estimate(asked)
            return 0
        with Ledger(ledger_path) as ledger:
            collector.check_complete(out, ledger)
            budget = Budget(prices, ledger, FLAGS.budget) if prices else None
            missing = [one for one in asked if collector.key(teacher, one) not in ledger]
            batches = Batches(out)
            if batches.open and not FLAGS.batch:
                raise UserError(
                    f"{batches.path}: batches are under way ({len(batches.open)}), and their answers paid for; give "
                    "--batch to fetch them"
                )
            waiting = batches.keys()
            to_ask = [one for one in missing if collector.key(teacher, one) not in waiting]
            spent = budget.spent + budget.at_risk + budget.prices.cost(batches.most, batch=True) if budget else 0.0
            show_estimate(to_ask, spent=spent, waiting=len(missing) - len(to_ask))
            if FLAGS.dry_run:
                return 0
            result = await _ask(teacher, asked, ledger, budget, batches)
            places = {prompt.id: place for place, prompt in enumerate(prompts)}
            asked.sort(key=lambda one: places[one.prompt.id])
            tally = collector.write_parquet(out, teacher, asked, ledger)
            kept = len(asked) - len(missing)
            counts = f"{tally.rows - result.received} from before, {teacher.retries} attempts repeated"
            if others := tally.rows - kept - result.received:
                counts += f", {others} to other prompts or with other settings"
            print(f"{tally.rows} answers ({counts}): {out if tally.rows else 'no file is written'}")
            for line in tally.lines() + (budget.lines() if budget else []):
                print(line)
        return _report(result, len(asked), interrupted=teacher.stop.is_set())


def _teacher() -> TeacherClient:
    from gadjax.teacher.client import TeacherClient
    from gadjax.teacher.limits import Limits
    from gadjax.teacher.protocol import RequestSettings

    fields, left_out = request_fields(FLAGS.request_fields, "--request_fields")
    temperature, top_p = (None if name in left_out else FLAGS[name].value for name in ("temperature", "top_p"))
    return TeacherClient(
        FLAGS.base_url,
        FLAGS.model,
        RequestSettings(temperature, top_p, FLAGS.max_tokens, FLAGS.seed),
        api_key=os.environ.get("OPENAI_API_KEY"),
        name=FLAGS.model_name,
        system=FLAGS.system or None,
        timeout=FLAGS.requests_timeout,
        max_retries=FLAGS.max_retries,
        limits=Limits(
            FLAGS.concurrency,
            requests_per_minute=FLAGS.requests_per_minute,
            tokens_per_minute=FLAGS.tokens_per_minute,
        ),
        limit_field=FLAGS.limit_field,
        fields=fields,
    )


async def _ask(
    teacher: TeacherClient, asked: list[Question], ledger: Ledger, budget: Budget | None, batches: Batches
) -> Collected:
    from rich.console import Console

    from gadjax.progress import AnswerProgress
    from gadjax.teacher import collector
    from gadjax.teacher.batch import BatchCollector

    def kept() -> int:
        return sum(collector.key(teacher, one) in ledger for one in asked)

    try:
        if FLAGS.batch:
            limits = dict(batch_size=FLAGS.batch_size, poll_seconds=FLAGS.batch_poll)
            tell = functools.partial(print, flush=True)
            return await BatchCollector(teacher, ledger, batches, budget=budget, tell=tell, **limits).collect(asked)
        with AnswerProgress(Console(), len(asked), kept(), teacher, budget) as progress, _interruptible(teacher):
            return await collector.collect(
                teacher, asked, ledger, concurrency=FLAGS.concurrency, budget=budget, on_answer=progress.add
            )
    except UserError as error:
        if not kept():
            raise
        raise UserError(
            f"{error}; {kept()} of {len(asked)} answers are kept in {ledger.path}, and the same command goes on "
            "from there"
        ) from None


@contextlib.contextmanager
def _interruptible(teacher: TeacherClient) -> Iterator[None]:
    """A block in which Ctrl-C ends the asking, but waits for the answers under way; a second one ends all at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        print("stopping: the answers under way are waited for; Ctrl-C again drops them", file=sys.stderr)
        teacher.stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _report(result: Collected, asked: int, *, interrupted: bool) -> int:
    """Prints what is missing, and returns the exit status."""
    if interrupted:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    lines, failures = [], list(result.failures.items())
    if result.unasked:
        lines.append(
            f"--budget={FLAGS.budget:g} is reached: {result.unasked} of {asked} requests were not made; a higher one "
            "goes on from here"
        )
    if failures:
        what = "prompts" if FLAGS.n == 1 else "requests"
        lines.append(f"{len(failures)} of {asked} {what} failed; the same command asks them again:")
        lines += [f"  {name}: {reason}" for name, reason in failures[:_SHOWN_FAILURES]]
    if len(failures) > _SHOWN_FAILURES:
        lines.append(f"  and {len(failures) - _SHOWN_FAILURES} more")
    for line in lines:
        print(line, file=sys.stderr)
    return 3 if result.unasked else 1 if failures else 0


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
