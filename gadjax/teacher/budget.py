"""What a collection costs: estimated before, counted as it goes, and kept within a budget.

Prices are the user's, in any currency, and so is the budget. Before an attempt begins, the most that it can cost is
set aside: every byte of the chat a token, and `max_tokens` of answer. It ends as what the API says was used, as
nothing where the API refused it (an HTTP error), or stays as it is where no answer arrived that may have been made
(a time-out, a gateway's too, a lost connection, a kill). So a bill is never above the budget, as long as the API keeps
to `max_tokens`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from gadjax.data.prompts import Prompt
from gadjax.errors import UserError
from gadjax.teacher.ledger import Key, Ledger
from gadjax.teacher.limits import until
from gadjax.teacher.usage import CHARACTERS_A_TOKEN, Usage, expected_tokens


class BudgetReached(Exception):
    """The next request does not fit in the budget, and nothing under way can make room for it."""


@dataclasses.dataclass(frozen=True)
class Prices:
    """Of a million tokens."""

    input: float
    output: float
    batch: float = 0.5  # the Batch API's, as a part of these

    def cost(self, used: Usage, *, batch: bool = False) -> float:
        """Of so many tokens."""
        cost = (used.prompt * self.input + used.completion * self.output) / 1e6
        return cost * self.batch if batch else cost


class Budget:
    """Counts what a ledger's answers cost, and lets attempts begin while they fit."""

    def __init__(self, prices: Prices, ledger: Ledger, limit: float | None = None):
        """
        Args:
          prices: of all answers in the ledger, those of former runs too.
          ledger: says what was spent, and keeps what may have been.
          limit: the budget; None only counts.
        """
        self.prices, self.limit, self._ledger = prices, limit, ledger
        self.under_way = 0
        self.changed = asyncio.Event()

    @property
    def spent(self) -> float:
        """On answers of this run and of former ones."""
        return sum(self.prices.cost(used, batch=batch) for batch, used in self._ledger.used.items())

    @property
    def at_risk(self) -> float:
        """Set aside for attempts under way, and for those of which nobody knows whether they were paid for."""
        return self.prices.cost(self._ledger.at_risk)

    def lines(self) -> list[str]:
        """What it came to, in words."""
        line = f"cost: {self.spent:.4g}"
        if self.limit is not None:
            line += f" of --budget={self.limit:g}"
        if lost := self._ledger.attempts_open:
            line += (
                f", and {self.at_risk:.4g} set aside for {lost} attempts of which no answer came, but which may have "
                "to be paid for"
            )
        return [line]

    def fits(self, most: Usage) -> bool:
        """Whether a request that takes `most` at most fits beside all else."""
        return self.limit is None or self.spent + self.at_risk + self.prices.cost(most) <= self.limit

    def fits_batches(self, most: Usage) -> bool:
        """Whether all open batches fit, which together take `most` at most."""
        return self.limit is None or self.spent + self.at_risk + self.prices.cost(most, batch=True) <= self.limit

    def lose(self, key: Key, most: Usage) -> None:
        """Sets aside for good what a batch's request may have cost, which was answered with what is no answer."""
        if self.limit is not None:
            self._ledger.lose(key, most)

    def account(self, key: Key, most: Usage, stop: asyncio.Event) -> Account:
        """For the attempts at one prompt, as `TeacherClient.ask` takes it.

        Args:
          key: of the answer.
          most: that one attempt can take.
          stop: ends a wait for room.
        """
        return Account(self, self._ledger, key, most, stop)


class Account:
    """Sets aside what each attempt at one prompt may cost."""

    def __init__(self, budget: Budget, ledger: Ledger, key: Key, most: Usage, stop: asyncio.Event):
        self._budget, self._ledger, self._key, self._most, self._stop = budget, ledger, key, most, stop

    async def begin(self) -> None:
        """Waits for room.

        Raises:
          BudgetReached: there will be none.
          asyncio.CancelledError: `stop` was set.
        """
        budget = self._budget
        while not budget.fits(self._most):
            if not budget.under_way:
                raise BudgetReached
            budget.changed.clear()
            await until(budget.changed, self._stop)
        if budget.limit is not None:
            self._ledger.begin(self._key, self._most)
        budget.under_way += 1

    def failed(self, *, billed: bool) -> None:
        """An attempt ended without an answer."""
        if not billed and self._budget.limit is not None:
            self._ledger.dismiss(self._key)
        self.answered()

    def answered(self) -> None:
        """An attempt ended, and its answer, if any, is in the ledger."""
        self._budget.under_way -= 1
        self._budget.changed.set()


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is still to be asked, and what it takes."""

    prompts: int  # of the file
    samples: int  # answers a prompt
    kept: int  # answers of former runs
    waiting: int  # requests in batches of former runs
    input_tokens: int  # of requests to be made, estimated
    max_tokens: int  # of an answer
    counted_by: str  # how the input was estimated

    @property
    def requests(self) -> int:
        """Still to be made."""
        return self.prompts * self.samples - self.kept - self.waiting

    @property
    def most(self) -> Usage:
        """Tokens, where every answer is as long as it may be."""
        return Usage(self.input_tokens, self.requests * self.max_tokens)

    def lines(self, prices: Prices | None, *, spent: float, limit: float | None, batch: bool) -> list[str]:
        """The estimate in words.

        Args:
          prices: of tokens; None where the user gave none.
          spent: by former runs, or set aside for what they lost.
          limit: the budget.
          batch: by the Batch API.
        """
        each = f" x {self.samples} answers" if self.samples > 1 else ""
        kept = f", {self.kept} answered before" if self.kept else ""
        waiting = f", {self.waiting} in batches under way" if self.waiting else ""
        lines = [
            f"{self.prompts} prompts{each}{kept}{waiting}: {self.requests} requests",
            f"input: about {self.most.prompt:,} tokens ({self.counted_by})",
            f"output: at most {self.most.completion:,} tokens (--max_tokens={self.max_tokens} a request)",
        ]
        if prices is None:
            lines.append("cost: not known without --input_price and --output_price")
            return lines
        cost = prices.cost(self.most, batch=batch)
        line = f"cost: at most about {cost:.4g}"
        if batch:
            line += f", at {prices.batch:g} of the prices by --batch"
        if spent:
            line += f"; {spent:.4g} spent before"
        if limit is not None:
            line += f"; --budget={limit:g}"
            line += " is enough" if spent + cost <= limit else " may end it before the last prompt"
        return [*lines, line]


def estimate(
    prompts: Sequence[Prompt],
    missing: Sequence[Prompt],
    *,
    waiting: int = 0,
    samples: int,
    system: str | None,
    max_tokens: int,
    tokenizer: str | None = None,
) -> Estimate:
    """What a collection takes.

    Args:
      prompts: of the file.
      missing: the prompts to ask, one for every request.
      waiting: requests for these prompts in batches under way.
      samples: answers a prompt.
      system: the system prompt of every chat.
      max_tokens: of an answer.
      tokenizer: directory or hub id to count the input with; by default four characters are a token.

    Raises:
      UserError: the tokenizer cannot be loaded.
    """
    if tokenizer is None:
        tokens = sum(expected_tokens(prompt.content, system) for prompt in missing)
        counted_by = f"estimated as characters / {CHARACTERS_A_TOKEN}; --tokenizer=NAME counts"
    else:
        tokens, counted_by = _count_tokens(missing, system, tokenizer), f"counted by --tokenizer={tokenizer}"
    kept = len(prompts) * samples - len(missing) - waiting
    return Estimate(len(prompts), samples, kept, waiting, tokens, max_tokens, counted_by)


def _count_tokens(prompts: Sequence[Prompt], system: str | None, tokenizer: str) -> int:
    from gadjax.data.tokenizer import load_tokenizer

    try:
        loaded = load_tokenizer(tokenizer)
    except UserError as error:
        raise UserError(f"--tokenizer: {error}") from None
    opening = [{"role": "system", "content": system}] if system else []
    return sum(len(ids) for ids in loaded.prompt_ids_batch(opening + prompt.content for prompt in prompts))
