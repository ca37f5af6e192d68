r"""Compares models on named sets of prompts: a judge's scores, overlap with the teacher, two-sample test, KLs.

    python -m gadjax.evaluate --models=before=HuggingFaceTB/SmolLM2-135M-Instruct,gad=/tmp/demo,seqkd=/tmp/demo@200 \
        --sets=vicuna=vicuna.jsonl,lmsys=test.parquet --judge=gpt-4o --out=/tmp/evaluation

Models, as NAME=SOURCE: a Hugging Face directory or hub id; the workdir of a run, for its last checkpoint,
WORKDIR@STEP, or WORKDIR@best (config.checkpoint.best); or api:MODEL, asked at --base_url. Sets, as NAME=FILE: prompts
as gadjax.collect reads them; where the rows hold `teacher_response`, answers are compared with it too. A set named
vicuna, self_instruct, dolly or lmsys is shown under the paper's name. The key of APIs comes from OPENAI_API_KEY and is
written nowhere.

Every model answers greedily, at most --max_response_length tokens. Then, as far as it is asked for:

- The judge (--judge): writes a reference answer to each prompt, or takes those of --references; rates each answer
  beside it from 1 to 10, in an order that a hash of --seed, set and prompt draws. Score: 100 mean(s / (s + s_ref)). A
  verdict whose first line is not two scores is asked for again (--judge_attempts), then counted as malformed. So is
  an empty reference answer, whose prompt then has no verdict. A judge that takes neither max_tokens nor a temperature,
  such as GPT-5, needs --judge_limit_field=max_completion_tokens and
  --judge_request_fields='{"temperature": null, "top_p": null}'.
- The two-sample test (--base): can a fresh classifier grown from this checkpoint tell the answers, drawn at
  --two_sample_temperature, from the teacher's? 50 % is indistinguishable.
- KLs (--teacher): reverse and forward, between each model at temperature 1 and an open teacher with the same tokenizer
  at --teacher_temperature, the temperature that its answers were collected with.

Both temperatures are by default the one of the sets' `temperature` columns, as gadjax.collect writes them, and 1 where
there is none.

OUT gets report.html (one file to look at: charts, the curves of the first run among the models, answers side by side),
table.md, results.json, answers/SET/MODEL.jsonl and verdicts.jsonl. What was answered, judged or measured is kept in
OUT/cache as it comes: the same command goes on where it was stopped, and another one with the same OUT does only what
is new. A changed model or prompt is asked anew.

Ends with status 0, with 1 when pairs lack a verdict for want of the API's answers, with 2 when nothing could go on.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from gadjax import commands
from gadjax.evaluation.settings import EvaluationSettings

if TYPE_CHECKING:
    from gadjax.evaluation.results import Results
FLAGS = flags.FLAGS
_SHOWN_FAILURES = 5


def define_flags() -> None:
    """Those of the command; not on import, so that commands can be imported together."""
    default = EvaluationSettings()
    flags.DEFINE_list(
        "models", None, "NAME=DIRECTORY, WORKDIR, WORKDIR@STEP, WORKDIR@best, HUB_ID or api:MODEL, ...", required=True
    )
    flags.DEFINE_list("sets", None, "NAME=PROMPTS, a .jsonl, .parquet or .txt file, hf: or tfds:, ...", required=True)
    flags.DEFINE_string("out", None, "Folder to write to; an earlier evaluation in it is used.", required=True)

    def integer(name: str, help: str) -> None:
        flags.DEFINE_integer(name, getattr(default, name), help)

    def number(name: str, help: str) -> None:
        flags.DEFINE_float(name, getattr(default, name), help)

    def string(name: str, help: str) -> None:
        flags.DEFINE_string(name, getattr(default, name), help)

    integer("max_response_length", "Tokens of an answer at most.")
    integer("max_prompts", "Of each set, the first so many; 0 for all.")
    integer("batch_size", "Prompts decoded at once; eight times as many are lost at most when it is stopped.")
    string("dtype", "auto (float32 on CPU, else bfloat16), float32 or bfloat16.")
    integer("seed", "Of samples, the judge's order, folds and bootstrap.")
    string("base_url", "The API of api:MODEL and the judge, up to /chat/completions.")
    integer("concurrency", "Requests under way at once.")
    number("requests_timeout", "Seconds for one attempt at a request.")
    integer("max_retries", "Attempts after a request's first.")
    string("limit_field", "The field of requests that says how long an answer may be, or max_completion_tokens.")
    string("request_fields", "More fields of requests, a JSON object; null leaves one out.")
    number("input_price", "Of a million tokens of prompts, in any currency, for the estimates.")
    number("output_price", "Of a million tokens of answers.")
    string("judge", "Name of the judge; none: no judge.")
    string("judge_base_url", "API of the judge and the reference model; default: --base_url.")
    string("judge_limit_field", "Of requests to these; default: --limit_field.")
    string("judge_request_fields", "Of requests to these; default: --request_fields.")
    string("reference_model", "Writes the reference answers; default: the judge.")
    flags.DEFINE_list("references", [], "SET=FILE with reference answers to the same chats, in `response`, ...")
    flags.DEFINE_boolean("judge_teacher", default.judge_teacher, "Judge the teacher's answers of the sets too.")
    number("judge_temperature", "Of a verdict's first attempt; later ones are drawn at 1 at least.")
    integer("judge_max_tokens", "Tokens of a verdict at most.")
    integer("judge_attempts", "At a verdict that can be read, and at a reference answer that is not empty.")
    string("base", "Directory or hub id that the two-sample test's classifiers grow from; none: no test.")
    integer("two_sample_folds", "Of the two-sample test.")
    integer("two_sample_epochs", "Passes over a fold's training answers.")
    number("two_sample_learning_rate", "Of the classifiers.")
    number("two_sample_temperature", "That tested answers are drawn at, 0: greedily; default: the sets' own, or 1.")
    string("teacher", "Directory or hub id of an open teacher with the models' tokenizer; none: no KL.")
    number("teacher_temperature", "That the teacher's answers were collected with; default: the sets' own, or 1.")
    integer("kl_samples", "Responses to a prompt that a KL is measured on.")
    string("kl_forward", "Responses of the forward KL: drawn from --teacher, or the given answers of the sets.")


def run(
    models: Mapping[str, str], sets: Mapping[str, str | os.PathLike[str]], out: str | os.PathLike[str], **settings: Any
) -> Results:
    """Evaluates models on sets of prompts; writes `out` as the command does.

    Args:
      models: sources by name, as --models has them.
      sets: files of prompts, or hf: and tfds: datasets, by name.
      out: folder; made where it is absent.
      **settings: fields of `gadjax.evaluation.settings.EvaluationSettings`.

    Returns:
      What `results.json` holds; `gadjax.evaluation.results.read_results` reads it again.

    Raises:
      UserError: something cannot work; the message says what to change. What was answered by then is kept.
    """
    return _evaluate(models, sets, out, EvaluationSettings(**settings)).results


def _evaluate(models, sets, out, settings: EvaluationSettings):
    from rich.console import Console

    from gadjax.evaluation.pipeline import evaluate
    from gadjax.progress import RunProgress

    with RunProgress(console=Console(stderr=True)) as progress:
        return evaluate(models, sets, out, settings, say=progress.say, watch=progress.update)


def main(argv: list[str]) -> int:
    del argv
    from rich.console import Console

    from gadjax.evaluation.model_sources import parse_pairs
    from gadjax.evaluation.table import print_scores

    fields = {field.name: FLAGS[field.name].value for field in dataclasses.fields(EvaluationSettings)}
    fields["references"] = parse_pairs(FLAGS.references, "--references")
    models, sets = parse_pairs(FLAGS.models, "--models"), parse_pairs(FLAGS.sets, "--sets")
    if any(not source.startswith("api:") for source in models.values()) or FLAGS.base or FLAGS.teacher:
        commands.use_compilation_cache()
    found = _evaluate(models, sets, FLAGS.out, EvaluationSettings(**fields))
    print_scores(Console(), found.results)
    print(f"all of it: {FLAGS.out}/report.html, {FLAGS.out}/table.md, {FLAGS.out}/results.json")
    return _report(found.unanswered, found.blank)


def _report(unanswered: Mapping[str, str], blank: Sequence[str]) -> int:
    """Says what is lacking and the remedy; the command's status."""
    if unanswered:
        print(f"{len(unanswered)} questions to the judge failed; the same command asks them again:", file=sys.stderr)
        _list([f"{what}: {reason}" for what, reason in unanswered.items()])
    if blank:
        print(
            f"{len(blank)} reference answers were empty at every attempt, so their prompts have no verdict; raise "
            "--max_response_length, which a model that thinks first may use up, or give --references=SET=FILE:",
            file=sys.stderr,
        )
        _list(blank)
    return 1 if unanswered or blank else 0


def _list(lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN_FAILURES]:
        print(f"  {line}", file=sys.stderr)
    if len(lines) > _SHOWN_FAILURES:
        print(f"  and {len(lines) - _SHOWN_FAILURES} more", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    commands.run(main)
