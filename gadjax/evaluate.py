r"""Compares models on named sets of prompts: a judge's scores, overlap with the teacher, two-sample test, KLs.

    python -m gadjax.evaluate --models=before=HuggingFaceTB/SmolLM2-135M-Instruct,gad=/tmp/demo,seqkd=/tmp/demo@200 \
        --sets=vicuna=vicuna.jsonl,lmsys=test.parquet --judge=gpt-4o --out=/tmp/evaluation

A model is given as NAME=SOURCE. SOURCE is a Hugging Face directory or hub id; the workdir of a run, for its last
checkpoint, WORKDIR@STEP, or WORKDIR@best (config.checkpoint.best); or api:MODEL, which is asked at --base_url. A set
is given as NAME=FILE, with prompts as gadjax.collect reads them. If its rows hold `teacher_response`, answers are
compared with the teacher's. Sets named vicuna, self_instruct, dolly and lmsys are shown under the paper's names. The
key of APIs comes from OPENAI_API_KEY and is written nowhere.

A source on this machine may go on with +best_of=8+discriminator=DIR. Its answer is then the one of eight draws that an
exported discriminator scores best. In place of greedy answers, the draws are at temperature 0.8, or +temperature=T.

Every model answers greedily, with at most --max_response_length tokens. What else is measured depends on the flags:

- --judge: the judge writes a reference answer to each prompt (or --references gives them) and rates each answer beside
  it from 1 to 10. A hash of --seed, set and prompt draws the order of the two. The score is 100 mean(s / (s + s_ref)).
  A verdict that does not begin with two scores is asked for again (--judge_attempts), then counted as malformed. An
  empty reference answer is asked for again too; if it stays empty, its prompt has no verdict. A judge that takes
  neither max_tokens nor a temperature, such as GPT-5, needs --judge_limit_field=max_completion_tokens and
  --judge_request_fields='{"temperature": null, "top_p": null}'.
- --base: the two-sample test. Can a fresh classifier that starts from this checkpoint tell the model's answers, drawn
  at --two_sample_temperature, from the teacher's? 50 % is indistinguishable.
- --teacher: reverse and forward KL between each model at temperature 1 and an open teacher with the same tokenizer at
  --teacher_temperature, the temperature that its answers were sampled at. A best of several draws has none.

- --votes: people's votes, given on an earlier evaluation's OUT/blind.html. That page shows two answers to a prompt side
  by side, without the models' names, and saves a person's votes as a file. The figures are each model's share of votes
  with its interval, and how far people agree with each other, and the judge with them.

By default both temperatures are that of the sets' `temperature` columns, which gadjax.collect writes, or 1 if there is
none.

OUT gets report.html (one file with charts, the first run's held-out curves, and answers side by side), blind.html,
table.md, results.json, answers/SET/MODEL.jsonl and verdicts.jsonl. Every answer, verdict and figure is kept in
OUT/cache as soon as it is there: the same command goes on where it was stopped, and another command with the same OUT
does only what is new. A changed model or prompt is asked anew.

The exit status is 0; 1 if pairs lack a verdict because the API gave no answer; 2 if the evaluation could not go on.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from gadjax import commands
from gadjax.callable_module import make_callable
from gadjax.evaluation.settings import EvaluationSettings, help_of

if TYPE_CHECKING:
    from gadjax.evaluation.results import Results
FLAGS = flags.FLAGS
_SHOWN_FAILURES = 5


def define_flags() -> None:
    """Defines the command's flags; not done on import, so that commands can be imported together."""
    sources = "NAME=DIRECTORY, WORKDIR, WORKDIR@STEP, WORKDIR@best, HUB_ID or api:MODEL, ..."
    flags.DEFINE_list("models", None, f"{sources} With +best_of=8+discriminator=DIR: the best of 8.", required=True)
    flags.DEFINE_list("sets", None, "NAME=PROMPTS, a file, folder, glob or dataset, ...", required=True)
    flags.DEFINE_string("out", None, "Folder to write to; an earlier evaluation in it is used.", required=True)
    kinds: dict[str, Any] = {"int": flags.DEFINE_integer, "float": flags.DEFINE_float, "bool": flags.DEFINE_boolean}
    kinds |= {"str": flags.DEFINE_string, "Mapping[str,": flags.DEFINE_list, "Sequence[str]": flags.DEFINE_list}
    for field in dataclasses.fields(EvaluationSettings):
        default = [] if field.default is dataclasses.MISSING else field.default
        kinds[field.type.split()[0]](field.name, default, help_of(field))


def run(
    models: Mapping[str, str], sets: Mapping[str, str | os.PathLike[str]], out: str | os.PathLike[str], **settings: Any
) -> Results:
    """Evaluates models on sets of prompts and writes `out`, as the command does.

    `gadjax.evaluate(...)` is this function.

    Args:
      models: sources by name, as in --models.
      sets: files of prompts, or hf: and tfds: datasets, by name.
      out: folder, which is made if it is absent.
      **settings: fields of `gadjax.evaluation.settings.EvaluationSettings`.

    Returns:
      The contents of `results.json`, which `gadjax.evaluation.results.read_results` reads again.

    Raises:
      UserError: something cannot work; the message says what to change. The answers until then are kept.
    """
    return _evaluate(models, sets, out, EvaluationSettings(**settings)).results


def _evaluate(models, sets, out, settings: EvaluationSettings):
    from rich.console import Console

    from gadjax.evaluation.evaluator import Evaluation
    from gadjax.progress import RunProgress

    with RunProgress(console=Console(stderr=True)) as progress:
        return Evaluation(models, sets, out, settings, say=progress.say, watch=progress.update).run()


def main(argv: list[str]) -> int:
    del argv
    from rich.console import Console

    from gadjax.evaluation.model_sources import parse_pairs
    from gadjax.evaluation.table import print_scores
    from gadjax.files import expand

    fields: dict[str, Any] = {field.name: FLAGS[field.name].value for field in dataclasses.fields(EvaluationSettings)}
    fields["references"] = parse_pairs(FLAGS.references, "--references")
    models, sets = parse_pairs(FLAGS.models, "--models"), parse_pairs(FLAGS.sets, "--sets")
    if any(not source.startswith("api:") for source in models.values()) or FLAGS.base or FLAGS.teacher:
        commands.use_compilation_cache()
    found = _evaluate(models, sets, FLAGS.out, EvaluationSettings(**fields))
    print_scores(Console(), found.results)
    if (page := expand(FLAGS.out) / "blind.html").is_file():
        print(f"blind comparison by people: {page}")
    print(f"all of it: {FLAGS.out}/report.html, {FLAGS.out}/table.md, {FLAGS.out}/results.json")
    return _report(found.unanswered, found.blank)


def _report(unanswered: Mapping[str, str], blank: Sequence[str]) -> int:
    """The command's exit status; prints what is lacking, with the remedy."""
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


make_callable(__name__)

if __name__ == "__main__":
    define_flags()
    commands.run(main)
