"""The best of several answers to a prompt: drawn from a model, scored by its discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gadjax.data.chats import Messages
from gadjax.errors import UserError
from gadjax.evaluation import scoring
from gadjax.evaluation.cached_model import CachedModel, Done, ResponseTokens
from gadjax.evaluation.kl import Drawn, draw_responses
from gadjax.evaluation.local_models import LocalModel, inspect_discriminator
from gadjax.evaluation.model_sources import EXPORT, parse_source
from gadjax.evaluation.prompt_sets import PromptSet
from gadjax.rollout.chat_model import CheckedNetwork


class Draw(NamedTuple):
    """An answer that was drawn, with what its score depends on."""

    tokens: np.ndarray  # [length] int32, its EOS included if it ended
    nats: float  # the log-likelihood of the tokens, as they were drawn
    ended: bool  # False if it was cut at the limit


def places(scores: np.ndarray) -> np.ndarray:
    """[prompts] the number of each prompt's best draw, given scores [prompts, draws]; of equals, the first."""
    return np.argmax(scores, axis=1)


def score_draws(
    discriminator: CheckedNetwork,
    prompts: Sequence[np.ndarray],
    groups: Sequence[Sequence[Draw]],
    *,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """The scores of draws, float64 [prompts, draws]. Loads the discriminator, and frees it.

    Args:
      discriminator: of either kind (`gadjax.evaluation.scoring`), with the generator's tokenizer.
      prompts: token ids.
      groups: the draws from each prompt, as many from each.
      done: called with the number of draws so far.

    Raises:
      UserError: a draw holds an id that the discriminator does not have.
    """
    draws = [draw for group in groups for draw in group]
    asked = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    responses = [draw.tokens for draw in draws]
    scoring.check_ids(discriminator.config, responses, discriminator.name)
    model, params, _, mesh = discriminator.load(decodes=False)
    size = min(scoring.BATCH, len(draws))
    pooling = discriminator.pooling
    values = scoring.sequence_values(model, params, mesh, asked, responses, pooling=pooling, batch_size=size, done=done)
    nats = np.array([draw.nats for draw in draws])
    return scoring.as_scores(discriminator.head, values, nats).reshape(len(prompts), -1)


def inspect_for(model: LocalModel, sets: Sequence[PromptSet], *, dtype: str = "auto") -> LocalModel:
    """The discriminator that `model.source.best_of` names, checked without loading weights.

    Args:
      model: that draws the answers.
      sets: of prompts, which both must read as the same tokens.
      dtype: as for `local_models.inspect`.

    Raises:
      UserError: it is no exported discriminator, or reads other tokens than the model.
    """
    given = model.source.best_of.discriminator
    flag = f"--models={model.source.name}=...+discriminator"
    source = parse_source("discriminator", given, flag)
    if source.kind != EXPORT or source.best_of:
        raise UserError(f"{flag}={given}: expected an export, such as WORKDIR/export/discriminator")
    found = inspect_discriminator(source, dtype=dtype)
    for prompts in sets:
        names, what = (model.source.given, f"{flag}={given}"), f"set {prompts.name}, prompt"
        scoring.check_tokenizers(model.tokenizer, found.tokenizer, prompts.chats, names, what)
    return found


class BestOfModel:
    """A model that answers with the best of `samples` draws by a discriminator; asked as a `CachedModel` is.

    The draws are those of the model alone, so the cache serves both, and any number of samples.

    Attributes:
      local: the model that draws.
    """

    def __init__(self, generator: CachedModel, discriminator: CachedModel, samples: int, temperature: float):
        """`temperature` is used where the model alone would answer greedily."""
        self.generator, self.discriminator = generator, discriminator
        self.samples, self.temperature = samples, temperature
        self.local = generator.local

    def close(self) -> None:
        """Frees the weights of both networks."""
        self.generator.close()
        self.discriminator.close()

    def prompts(self, chats: Sequence[Messages]) -> list[np.ndarray]:
        """The chats as token ids, which are those of the discriminator too."""
        return self.generator.prompts(chats)

    def prepare(
        self, prompts: Sequence[np.ndarray], limit: int, temperature: float, *, done: Done = lambda count: None
    ) -> None:
        """Caches all that `draw` needs of the generator, so that no more than one network is in memory.

        Arguments as for `draw`, but `done` is called with the number of draws so far, `samples` from each prompt.
        """
        self._drawn(prompts, limit, temperature, done)

    def draw(
        self, prompts: Sequence[np.ndarray], limit: int, temperature: float, *, done: Done = lambda count: None
    ) -> list[ResponseTokens]:
        """The best of the draws from each prompt.

        Args:
          prompts: token ids; equal prompts get draws of their own.
          limit: tokens of a response, at most.
          temperature: of the draws; 0 stands for `self.temperature`.
          done: called with the number of prompts whose draws are scored.

        Raises:
          UserError: a draw holds an id that the discriminator does not have.
        """
        drawn, nats = self._drawn(prompts, limit, temperature)
        self.generator.close()
        asked, responses, judge = self._asked(prompts), drawn.flat(), self.discriminator
        scoring.check_ids(judge.local.config, responses, judge.local.source.given)
        values = judge.values(asked, responses, done=lambda count: done(count // self.samples))
        scores = scoring.as_scores(judge.local.head, values, nats).reshape(len(prompts), self.samples)
        return [drawn.draws[place][i] for i, place in enumerate(places(scores))]

    def _drawn(
        self, prompts: Sequence[np.ndarray], limit: int, temperature: float, done: Done = lambda count: None
    ) -> tuple[Drawn, np.ndarray | None]:
        """The draws and, for a discriminator of the likelihood kind, their log-likelihoods."""
        at, eos_ids = temperature or self.temperature, self.local.eos_ids
        drawn = draw_responses(self.generator, prompts, limit, at, self.samples, eos_ids, done)
        if self.discriminator.local.head == "score":
            return drawn, None
        return drawn, self.generator.log_likelihoods(self._asked(prompts), drawn.flat(), at)

    def _asked(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The prompt of each draw, one prompt's draws after the other."""
        return [prompt for prompt in prompts for _ in range(self.samples)]
