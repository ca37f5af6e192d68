import asyncio
import functools
import random

import pytest

from gadjax.data.prompts import Prompt
from gadjax.errors import UserError
from gadjax.teacher.budget import Account, Budget, BudgetReached, Prices, estimate
from gadjax.teacher.ledger import Key, Ledger, LedgerEntry
from gadjax.teacher.usage import Usage, most_tokens, most_usage
from tests.teacher.virtual_time import run

pytestmark = pytest.mark.quick

PRICES = Prices(input=2.0, output=10.0)
QUESTION = {"content": [{"role": "user", "content": "Hi"}], "max_tokens": 1000}


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        yield ledger


def test_cost_is_of_a_million_tokens_and_half_in_a_batch(ledger):
    assert PRICES.cost(Usage(1_000_000, 0)) == 2 and PRICES.cost(Usage(0, 500_000)) == 5
    ledger.append(Key("a", "f"), LedgerEntry("x", "stop", 0, 1_000_000, 100_000), QUESTION)
    assert Budget(PRICES, ledger).spent == pytest.approx(3)
    ledger.append(Key("b", "f"), LedgerEntry("x", "stop", 0, 1_000_000, 100_000), QUESTION | {"batch": "b"})
    assert Budget(PRICES, ledger).spent == pytest.approx(4.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_bill_never_passes_the_budget(ledger, seed):
    """Of many requests at once, some fail at no cost, some answers are lost, and some take all that they may."""
    draw = random.Random(seed)
    most = Usage(100, 1000)
    limit = 40 * PRICES.cost(most)
    budget, stop = Budget(PRICES, ledger, limit), asyncio.Event()
    bill = [0.0]
    ends = []

    async def one(name):
        account = Account(budget, Key(str(name), "f"), most, stop)
        try:
            while True:
                await account.begin()
                await asyncio.sleep(draw.random())
                fate = draw.random()
                if fate < 0.2:
                    account.failed(billed=False)
                    continue
                used = Usage(draw.randint(1, 100), draw.choice([1000, draw.randint(0, 1000)]))
                bill[0] += PRICES.cost(used)
                assert bill[0] <= limit
                if fate < 0.3:
                    account.failed(billed=True)
                    continue
                ledger.append(Key(str(name), "f"), LedgerEntry("x", "stop", 0, *used), QUESTION)
                account.answered()
                return
        except BudgetReached:
            ends.append(name)

    async def work():
        await asyncio.gather(*(one(name) for name in range(200)))

    run(work())
    assert ends and budget.under_way == 0
    # What is left would not have taken another request.
    assert limit - PRICES.cost(most) < budget.spent + budget.at_risk <= limit
    assert bill[0] <= budget.spent + budget.at_risk


def test_without_a_limit_all_is_counted_and_nothing_held_back(ledger):
    budget = Budget(PRICES, ledger)
    account = Account(budget, Key("a", "f"), Usage(10**9, 10**9), asyncio.Event())
    asyncio.run(account.begin())
    account.failed(billed=True)
    assert ledger.attempts_open == 0 and budget.lines() == ["cost: 0"]


def test_a_tokenizer_counts_and_no_tokens_are_more_than_bytes(tmp_path, write_tokenizer):
    """The tokens set aside for a prompt are an upper bound for every byte-level tokenizer."""
    from gadjax.data.tokenizer import load_tokenizer

    write_tokenizer(tmp_path, ["what is the name of the cat"])
    chat = [{"role": "user", "content": "Ünïcödé 日本語 \U0001f600 ~~~ <|im_end|> x" * 20}]
    tokens = len(load_tokenizer(tmp_path).prompt_ids([{"role": "system", "content": "Be brief."}, *chat]))
    assert tokens <= most_tokens(chat, "Be brief.")
    prompts = [Prompt("a", chat), Prompt("b", chat)]
    _, *lines, _ = estimate(prompts, prompts, samples=1, system="Be brief.", max_tokens=9, tokenizer=str(tmp_path))
    assert lines == [
        f"input: about {2 * tokens:,} tokens (counted by --tokenizer={tmp_path})",
        "output: at most 18 tokens (--max_tokens=9 a request)",
    ]
    with pytest.raises(UserError, match="--tokenizer: "):
        estimate(prompts, prompts, samples=1, system=None, max_tokens=9, tokenizer=str(tmp_path / "absent"))


def test_the_estimate_in_words():
    prompts = [Prompt(str(i), [{"role": "user", "content": "x" * 400}]) for i in range(10)]
    made = functools.partial(estimate, prompts, prompts[:7], samples=1, system="y" * 40, max_tokens=1000)
    assert made() == [
        "10 prompts, 3 answered before: 7 requests",
        f"input: about {7 * (110 + 8)} tokens (estimated as characters / 4; --tokenizer=NAME counts)",
        "output: at most 7,000 tokens (--max_tokens=1000 a request)",
        "cost: not known without --input_price and --output_price",
    ]
    assert most_usage(prompts[0].content, None, 9) == Usage(400 + 16 + 64, 9)
    half = made(prices=PRICES, spent=0.01, limit=1.0, batch=True)[-1]
    assert half == (
        f"cost: at most about {(826 * 2 + 70000) / 2e6:.4g}, at 0.5 of the prices by --batch; 0.01 spent before; "
        "--budget=1 is enough"
    )
    aside = made(prices=PRICES, spent=0.01, set_aside=0.5, limit=1.0)[-1]
    assert aside.endswith(
        "; 0.01 spent before; 0.5 set aside for earlier requests that may have to be paid for; --budget=1 is enough"
    )
    aside = made(prices=PRICES, spent=0.01, set_aside=0.95, limit=1.0)[-1]
    assert aside.endswith("may end it before the last prompt"), "what is set aside takes room"
