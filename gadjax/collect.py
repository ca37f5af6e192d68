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

--heldout=500 writes the answers to 500 of the prompts to a file of its own, teacher.heldout.parquet beside
teacher.parquet, on which a run measures its student (--config.data.heldout). A hash of the prompt chooses them.

--inspect=FILE shows what such a file, or a ledger, holds. --publish=FILE --out=DATA_DIR/NAME/VERSION writes it as a
TFDS dataset, which training reads as tfds:DATA_DIR/NAME/VERSION/train, or as tfds:NAME/train if TFDS_DATA_DIR is
DATA_DIR.

The exit status is 0 if every prompt is answered, 1 if some failed, 2 if the command could not continue, 3 if the budget
was reached before the last prompt, and 130 after Ctrl-C, which waits for the answers under way.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from gadjax import commands
from gadjax.callable_module import make_callable
from gadjax.collecting import Collection, collect
from gadjax.errors import UserError
from gadjax.files import expand
from gadjax.teacher.protocol import LIMIT_FIELDS

FLAGS = flags.FLAGS
_SHOWN_FAILURES = 5


def define_flags(into: flags.FlagValues = FLAGS) -> None:
    """Defines the command's flags; not done on import, so that several commands can be imported.

    `into`: other flags than the command line's, for settings from Python.
    """
    string, integer, number, boolean, choice = (
        functools.partial(define, flag_values=into)
        for define in (
            flags.DEFINE_string,
            flags.DEFINE_integer,
            flags.DEFINE_float,
            flags.DEFINE_bool,
            flags.DEFINE_enum,
        )
    )
    string("prompts", None, "Prompts: a file, a folder, a glob, or a dataset (hf:..., tfds:...).")
    string("base_url", "https://api.openai.com/v1", "The API, up to /chat/completions.")
    string("model", None, "Name of the model in requests.")
    string("model_name", None, "Name of the model in the Parquet; default: --model.")
    string("out", None, "Parquet file to write.")
    string("system", None, "System prompt before every chat; kept as a column.")
    number("temperature", 0.7, "Temperature of the teacher's sampling.", lower_bound=0)
    number("top_p", 1.0, "Top-p of the teacher's sampling.", lower_bound=0, upper_bound=1)
    integer("max_tokens", 1536, "Longest answer, in tokens.", lower_bound=1, upper_bound=2**31 - 1)
    choice("limit_field", LIMIT_FIELDS[0], LIMIT_FIELDS, "Field of requests that holds --max_tokens.")
    string("request_fields", None, "More fields of requests, a JSON object; null leaves one out.")
    integer("seed", None, "Seed in requests; some servers ignore it.", lower_bound=-(2**62), upper_bound=2**62)
    integer("n", 1, "Answers to each prompt, each by its own request.", lower_bound=1)
    integer("concurrency", 16, "Requests under way at once, at most.", lower_bound=1)
    number("requests_per_minute", None, "Requests that begin in a minute, at most.", lower_bound=0.001)
    number("tokens_per_minute", None, "Tokens in and out in a minute, at most.", lower_bound=1)
    number("requests_timeout", 120.0, "Seconds that one attempt may take.", lower_bound=0.1)
    integer("max_retries", 8, "Attempts at a prompt after the first.", lower_bound=0)
    number("input_price", None, "Price of a million tokens of prompts.", lower_bound=0)
    number("output_price", None, "Price of a million tokens of answers.", lower_bound=0)
    number("budget", None, "What --out may cost, earlier runs included, in the prices' currency.")
    string("tokenizer", None, "Hugging Face directory or hub id that counts the estimate's input.")
    boolean("batch", False, "Ask through the Batch API: cheaper, within a day.")
    number("batch_price", 0.5, "Prices with --batch, as a part of the others.", lower_bound=0)
    integer("batch_size", 50_000, "Requests in a batch, at most.", lower_bound=1, upper_bound=50_000)
    number("batch_poll", 60.0, "Seconds between looks at the batches.", lower_bound=0.01)
    integer("heldout", 0, "Prompts whose answers go to OUT's .heldout.parquet instead, to measure on.", lower_bound=0)
    boolean("dry_run", False, "Print what the command would take, and end.")
    string("inspect", None, "Teacher's Parquet or ledger: print what it holds, and end.")
    string("publish", None, "Teacher's Parquet: write it as a TFDS dataset to --out, and end.")


def run(prompts: str | os.PathLike[str], out: str | os.PathLike[str], *, model: str, **settings: Any) -> Collection:
    """Collects a teacher's answers into a Parquet file, as the command does; `gadjax.collect(...)` is this function.

    The same call again asks only for what is missing.

    Args:
      prompts: file of prompts, or a dataset, as --prompts takes it.
      out: the Parquet file to write.
      model: the API's name of the teacher.
      **settings: the command's other flags by their names, such as base_url, temperature, n and budget.

    Raises:
      UserError: a setting or a file cannot work, or the API refuses; the message says what to change.
      KeyboardInterrupt: by Ctrl-C. Answers that were received are kept.
    """
    values = _settings({"prompts": os.fspath(prompts), "out": os.fspath(out), "model": model, **settings})
    found = collect(values)
    if found.interrupted:
        raise KeyboardInterrupt
    return found


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
    if FLAGS.publish is not None:
        return _publish(expand(FLAGS.out))
    return _report(collect(FLAGS))


def _settings(given: Mapping[str, Any]) -> flags.FlagValues:
    """The command's flags with values from Python; those that are not given have their defaults.

    Raises:
      UserError: there is no such flag, or the value is not one of its values.
    """
    values = flags.FlagValues()
    define_flags(values)
    for name in ("inspect", "publish"):
        delattr(values, name)
    values.mark_as_parsed()
    for name, value in given.items():
        if name not in values:
            raise UserError(f"gadjax.collect has no setting {name}; there are {', '.join(sorted(values))}")
        if isinstance(value, Mapping):
            value = json.dumps(value)  # of request_fields
        if value is not None:
            try:
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError("expected a finite number")
                values[name].value = values[name].parser.parse(value)
            except (TypeError, ValueError) as error:
                raise UserError(f"gadjax.collect: {name}={value!r}: {error}") from None
    return values


def _publish(out: pathlib.Path) -> int:
    from gadjax.data import tfds

    folder = tfds.publish(expand(FLAGS.publish), out)
    name, version = folder.parent.name, folder.name
    print(f"{folder}: train with --config.data.train=tfds:{folder}/train, or open")
    print(f"tfds.data_source({f'{name}:{version}'!r}, data_dir={str(folder.parent.parent)!r})")
    return 0


def _report(result: Collection) -> int:
    """Prints what is missing, and returns the exit status."""
    if result.interrupted:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    lines, failures = [], list(result.failures.items())
    if result.unasked:
        lines.append(
            f"--budget={FLAGS.budget:g} is reached: {result.unasked} of {result.asked} requests were not made; a "
            "higher one goes on from here"
        )
    if failures:
        what = "prompts" if FLAGS.n == 1 else "requests"
        lines.append(f"{len(failures)} of {result.asked} {what} failed; the same command asks them again:")
        lines += [f"  {name}: {reason}" for name, reason in failures[:_SHOWN_FAILURES]]
    if len(failures) > _SHOWN_FAILURES:
        lines.append(f"  and {len(failures) - _SHOWN_FAILURES} more")
    for line in lines:
        print(line, file=sys.stderr)
    return 3 if result.unasked else 1 if failures else 0


make_callable(__name__)

if __name__ == "__main__":
    define_flags()
    commands.run(main)
