"""What a collection costs: estimated before it begins, counted as it goes, and kept within a budget.

Prices and budget are the user's, in any currency. Before an attempt begins, the most that it can cost is set aside:
one token for every byte of the chat, and `max_tokens` for the answer. When it ends, that becomes what the API says was
used, or nothing if the API refused the request (an HTTP error). It stays set aside if no answer arrived but one may
have been made: after a time-out, also a gateway's, a lost connection or a kill. So the bill stays within the budget as
long as the API keeps to `max_tokens`.
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
    """The budget has no room for the next request, and no request in flight can make room."""


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices of a million tokens."""

    input: float
    output: float
    batch: float = 0.5  # the Batch API's prices, as a part of these

    def cost(self, used: Usage, *, batch: bool = False) -> float:
        """The cost of tokens, asked live or in a batch."""
        cost = (used.prompt * self.input + used.completion * self.output) / 1e6
        return cost * self.batch if batch else cost


class Budget:
    """Counts the cost of a ledger's answers, and lets attempts begin while they fit."""

    def __init__(self, prices: Prices, ledger: Ledger, limit: float | None = None):
        """
        Args:
          prices: of all answers in the ledger, earlier runs included.
          ledger: says what was spent, and records what may have been.
          limit: the budget; None only counts.
        """
        self.prices, self.limit, self.ledger = prices, limit, ledger
        self.before = self.spent  # by earlier runs
        self.under_way = 0
        self.changed = asyncio.Event()

    @property
    def spent(self) -> float:
        """Cost of all answers, earlier runs included."""
        return sum(self.prices.cost(used, batch=batch) for batch, used in self.ledger.used.items())

    @property
    def at_risk(self) -> float:
        """Cost set aside for attempts in flight, and for lost ones that may have to be paid for."""
        return self.prices.cost(self.ledger.at_risk)

    def lines(self) -> list[str]:
        """A line for the user about what was spent and set aside."""
        line = f"cost: {self.spent:.4g}"
        if self.limit is not None:
            line += f" of --budget={self.limit:g}"
        if self.before:
            line += f", {self.before:.4g} of it by earlier runs"
        if lost := self.ledger.attempts_open:
            line += (
                f", and {self.at_risk:.4g} set aside for {lost} attempts of which no answer came, but which may have "
                "to be paid for"
            )
        return [line]

    def fits(self, most: Usage, *, batch: bool = False) -> bool:
        """Whether there is room for a request of at most `most` tokens, or for open batches that take so many."""
        return self.limit is None or self.spent + self.at_risk + self.prices.cost(most, batch=batch) <= self.limit

    def lose(self, key: Key, most: Usage) -> None:
        """Sets aside for good what a batch's request may have cost whose answer cannot be read."""
        if self.limit is not None:
            self.ledger.lose(key, most)


@dataclasses.dataclass(frozen=True)
class Account:
    """Sets aside what each attempt at one prompt may cost; `TeacherClient.ask` takes it."""

    budget: Budget
    key: Key  # of the answer
    most: Usage  # upper bound on the tokens of one attempt
    stop: asyncio.Event  # ends a wait for room

    async def begin(self) -> None:
        """Waits for room in the budget.

        Raises:
          BudgetReached: there will be none.
          asyncio.CancelledError: `stop` was set.
        """
        budget = self.budget
        while not budget.fits(self.most):
            if not budget.under_way:
                raise BudgetReached
            budget.changed.clear()
            await until(budget.changed, self.stop)
        if budget.limit is not None:
            budget.ledger.begin(self.key, self.most)
        budget.under_way += 1

    def failed(self, *, billed: bool) -> None:
        """Ends an attempt without an answer."""
        if not billed and self.budget.limit is not None:
            self.budget.ledger.dismiss(self.key)
        self.answered()

    def answered(self) -> None:
        """Ends an attempt whose answer, if any, is in the ledger."""
        self.budget.under_way -= 1
        self.budget.changed.set()


def estimate(
    prompts: Sequence[Prompt],
    missing: Sequence[Prompt],
    *,
    waiting: int = 0,
    samples: int,
    system: str | None,
    max_tokens: int,
    tokenizer: str | None = None,
    prices: Prices | None = None,
    spent: float = 0.0,
    set_aside: float = 0.0,
    limit: float | None = None,
    batch: bool = False,
) -> list[str]:
    """Lines about what a collection will take.

    Args:
      prompts: all prompts of the file.
      missing: the prompts to ask, one for every request.
      waiting: number of requests for `prompts` in batches under way.
      samples: answers to each prompt.
      system: the system prompt of every chat.
      max_tokens: of an answer.
      tokenizer: directory or hub id that counts the input; None estimates it from characters.
      prices: None if the user gave none.
      spent: cost of the answers of earlier runs.
      set_aside: cost, at most, of their attempts that were lost, and of batches under way.
      limit: the budget.
      batch: whether the Batch API is asked.

    Raises:
      UserError: the tokenizer cannot be loaded.
    """
    if tokenizer is None:
        tokens = sum(expected_tokens(prompt.content, system) for prompt in missing)
        counted_by = f"estimated as characters / {CHARACTERS_A_TOKEN}; --tokenizer=NAME counts"
    else:
        tokens, counted_by = _count_tokens(missing, system, tokenizer), f"counted by --tokenizer={tokenizer}"
    most = Usage(tokens, len(missing) * max_tokens)
    answered = len(prompts) * samples - len(missing) - waiting
    line = f"{len(prompts)} prompts" + (f" x {samples} answers" if samples > 1 else "")
    line += f", {answered} answered before" if answered else ""
    line += f", {waiting} in batches under way" if waiting else ""
    lines = [
        f"{line}: {len(missing)} requests",
        f"input: about {most.prompt:,} tokens ({counted_by})",
        f"output: at most {most.completion:,} tokens (--max_tokens={max_tokens} a request)",
    ]
    if prices is None:
        return [*lines, "cost: not known without --input_price and --output_price"]
    cost = prices.cost(most, batch=batch)
    line = f"cost: at most about {cost:.4g}"
    if batch:
        line += f", at {prices.batch:g} of the prices by --batch"
    line += f"; {spent:.4g} spent before" if spent else ""
    line += f"; {set_aside:.4g} set aside for earlier requests that may have to be paid for" if set_aside else ""
    if limit is not None:
        line += f"; --budget={limit:g}"
        line += " is enough" if spent + set_aside + cost <= limit else " may end it before the last prompt"
    return [*lines, line]


def _count_tokens(prompts: Sequence[Prompt], system: str | None, tokenizer: str) -> int:
    from gadjax.data.tokenizer import load_tokenizer

    try:
        loaded = load_tokenizer(tokenizer)
    except UserError as error:
        raise UserError(f"--tokenizer: {error}") from None
    opening = [{"role": "system", "content": system}] if system else []
    return sum(len(ids) for ids in loaded.prompt_ids_batch(opening + prompt.content for prompt in prompts))
