"""A collection of a teacher's answers: from settings to the Parquet file. gadjax.collect reads the settings."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from gadjax.errors import UserError
from gadjax.files import expand
from gadjax.teacher.in_loop import finish, interruptible
from gadjax.teacher.protocol import request_fields

if TYPE_CHECKING:
    from gadjax.data.prompts import Prompt
    from gadjax.teacher.batch_state import Batches
    from gadjax.teacher.budget import Budget, Prices
    from gadjax.teacher.client import TeacherClient
    from gadjax.teacher.collector import Collected, Question
    from gadjax.teacher.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class Collection:
    """The outcome of a collection.

    Attributes:
      out: the Parquet file, which is there if `rows` is above 0.
      heldout: the Parquet file of the held-out prompts, where some were wanted.
      asked: answers that were wanted, in all.
      rows: answers in the file, those of earlier runs included.
      received: answers that this run received.
      failures: the reason for each answer that is missing, by the prompt's id; the same call asks for it again.
      unasked: answers that the budget had no room for.
      interrupted: whether Ctrl-C ended the asking.
    """

    out: pathlib.Path
    asked: int
    rows: int = 0
    received: int = 0
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unasked: int = 0
    interrupted: bool = False
    heldout: pathlib.Path | None = None


def collect(settings: flags.FlagValues) -> Collection:
    """Checks the settings, asks for the answers that are missing, and writes the file.

    `settings`: the flags of gadjax.collect.
    """
    out = expand(settings.out)
    ledger_path = out.with_name(out.name + ".ledger.jsonl")
    _check_out(out, ledger_path)
    prices = _prices(settings)
    request_fields(settings.request_fields, "--request_fields")  # checked before anything is read
    if settings.n > 1 and settings.temperature == 0:
        raise UserError(
            f"--n={settings.n} with --temperature=0 pays {settings.n} times for one answer; raise --temperature"
        )

    from gadjax.data.heldout import heldout_path, lowest, rank
    from gadjax.data.prompts import read_prompts

    prompts = read_prompts(settings.prompts, say=print)
    ranks = {rank(prompt.content) for prompt in prompts}
    if settings.heldout >= len(ranks):
        raise UserError(
            f"--heldout={settings.heldout}: {settings.prompts} has {len(ranks)} different prompts; leave some to "
            "train on"
        )
    if not settings.heldout and heldout_path(out).exists():
        raise UserError(
            f"{heldout_path(out)} holds answers that --out={out} would hold too: give --heldout as before, or remove it"
        )
    if settings.system:
        for prompt in prompts:
            if prompt.content[0]["role"] == "system":
                raise UserError(f"--system: prompt {prompt.id!r} has a system message of its own; drop one")
    held = frozenset(lowest(ranks, settings.heldout))
    return finish(_run(settings, prompts, prices, out, ledger_path, held))


def _prices(settings: flags.FlagValues) -> Prices | None:
    from gadjax.teacher.budget import Prices

    if settings.budget is not None and settings.budget <= 0:
        raise UserError(f"--budget={settings.budget:g}: expected more than 0")
    if settings.input_price is None and settings.output_price is None:
        if settings.budget is not None:
            raise UserError("--budget needs --input_price and --output_price, of a million tokens, to count with")
        return None
    for name in ("input_price", "output_price"):
        if settings[name].value is None:
            raise UserError(f"--{name} is missing; give it with the other price, 0 where it is free")
    return Prices(settings.input_price, settings.output_price, settings.batch_price)


async def _run(
    settings: flags.FlagValues,
    prompts: list[Prompt],
    prices: Prices | None,
    out: pathlib.Path,
    ledger_path: pathlib.Path,
    held: frozenset[float],
) -> Collection:
    from gadjax.data.heldout import heldout_path
    from gadjax.teacher import collector
    from gadjax.teacher.batch_state import Batches
    from gadjax.teacher.budget import Budget, estimate
    from gadjax.teacher.ledger import Ledger

    def show_estimate(to_ask: list[Question], **options: Any) -> None:
        names: dict[str, Any] = {name: settings[name].value for name in ("max_tokens", "tokenizer", "batch")}
        names |= {"samples": settings.n, "system": settings.system or None, "prices": prices, "limit": settings.budget}
        print("\n".join(estimate(prompts, [one.prompt for one in to_ask], **names, **options)), flush=True)

    asked = collector.questions(prompts, settings.n)
    heldout = heldout_path(out) if held else None
    async with _teacher(settings) as teacher:
        if settings.dry_run and not ledger_path.exists():
            show_estimate(asked)
            return Collection(out, len(asked))
        with Ledger(ledger_path) as ledger:
            collector.check_complete(out, ledger)
            if heldout:
                collector.check_complete(heldout, ledger)
            budget = Budget(prices, ledger, settings.budget) if prices else None
            missing = [one for one in asked if collector.key(teacher, one) not in ledger]
            batches = Batches(out)
            if batches.open and not settings.batch:
                raise UserError(
                    f"{batches.path}: batches are under way ({len(batches.open)}), and their answers paid for; give "
                    "--batch to fetch them"
                )
            waiting = batches.keys()
            to_ask = [one for one in missing if collector.key(teacher, one) not in waiting]
            costs: dict[str, float] = {}
            if budget:
                under_way = budget.prices.cost(batches.most, batch=True)
                costs = {"spent": budget.spent, "set_aside": budget.at_risk + under_way}
            show_estimate(to_ask, waiting=len(missing) - len(to_ask), **costs)
            if settings.dry_run:
                return Collection(out, len(asked))
            result = await _ask(settings, teacher, asked, ledger, budget, batches)
            places = {prompt.id: place for place, prompt in enumerate(prompts)}
            asked.sort(key=lambda one: places[one.prompt.id])
            tally = collector.write_parquet(out, teacher, asked, ledger, held)
            kept = len(asked) - len(missing)
            counts = f"{tally.rows - result.received} from before, {teacher.retries} attempts repeated"
            if others := tally.rows - kept - result.received:
                counts += f", {others} to other prompts or with other settings"
            written = ", ".join(str(file) for file in (out, heldout) if file and file.exists())
            print(f"{tally.rows} answers ({counts}): {written or 'no file is written'}")
            for line in tally.lines() + (budget.lines() if budget else []):
                print(line)
        return Collection(
            out,
            asked=len(asked),
            rows=tally.rows,
            received=result.received,
            failures=result.failures,
            unasked=result.unasked,
            interrupted=teacher.stop.is_set(),
            heldout=heldout,
        )


def _teacher(settings: flags.FlagValues) -> TeacherClient:
    from gadjax.teacher.client import TeacherClient
    from gadjax.teacher.limits import Limits
    from gadjax.teacher.protocol import RequestSettings

    fields, left_out = request_fields(settings.request_fields, "--request_fields")
    temperature, top_p = (None if name in left_out else settings[name].value for name in ("temperature", "top_p"))
    return TeacherClient(
        settings.base_url,
        settings.model,
        RequestSettings(temperature, top_p, settings.max_tokens, settings.seed),
        api_key=os.environ.get("OPENAI_API_KEY"),
        name=settings.model_name,
        system=settings.system or None,
        timeout=settings.requests_timeout,
        max_retries=settings.max_retries,
        limits=Limits(
            settings.concurrency,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
        ),
        limit_field=settings.limit_field,
        fields=fields,
    )


async def _ask(
    settings: flags.FlagValues,
    teacher: TeacherClient,
    asked: list[Question],
    ledger: Ledger,
    budget: Budget | None,
    batches: Batches,
) -> Collected:
    from rich.console import Console

    from gadjax.progress import AnswerProgress
    from gadjax.teacher import collector
    from gadjax.teacher.batch import BatchCollector

    def kept() -> int:
        return sum(collector.key(teacher, one) in ledger for one in asked)

    try:
        if settings.batch:
            limits = dict(batch_size=settings.batch_size, poll_seconds=settings.batch_poll)
            tell = functools.partial(print, flush=True)
            return await BatchCollector(teacher, ledger, batches, budget=budget, tell=tell, **limits).collect(asked)
        with AnswerProgress(Console(), len(asked), kept(), teacher, budget) as progress, interruptible(teacher.stop):
            return await collector.collect(
                teacher, asked, ledger, concurrency=settings.concurrency, budget=budget, on_answer=progress.add
            )
    except UserError as error:
        if not kept():
            raise
        raise UserError(
            f"{error}; {kept()} of {len(asked)} answers are kept in {ledger.path}, and the same command goes on "
            "from there"
        ) from None


def _check_out(out: pathlib.Path, ledger: pathlib.Path) -> None:
    if out.suffix != ".parquet":
        raise UserError(f"--out={out}: the name must end in .parquet")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    if out.exists() and not ledger.exists():
        raise UserError(f"--out={out}: the file is there, but not its {ledger.name}; give another name")
