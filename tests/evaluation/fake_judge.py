"""An API whose models answer with a known quality, and a judge that reads it, on loopback."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from tests.teacher.fake_server import FakeServer, Reply

_SHOWN = re.compile(
    r"\[The Start of Assistant ([12])'s Answer\]\n(.*?)\n\n\[The End of Assistant \1's Answer\]", re.DOTALL
)
_QUALITY = re.compile(r"quality=([0-9.]+)")


class FakeJudge(FakeServer):
    """A context manager. Models: "judge" scores by the quality that an answer names; any other answers.

    Attributes:
      quality: of a model's answer to a prompt.
      verdict: what the judge says, from the two scores, the question and the attempt; an answer in OpenAI's form too.
    """

    def __init__(
        self,
        quality: Callable[[str, str], float],
        verdict: Callable[[float, float, str, int], str | Reply] = lambda a, b, *_: f"{a:g} {b:g}\nbecause",
        seconds: float = 0.0,
    ):
        super().__init__(self._behave)
        self.quality, self.verdict, self.seconds = quality, verdict, seconds
        self._model = threading.local()

    def receive(self, request: dict, key: str) -> Reply:
        self._model.name = request["model"]
        return super().receive(request, key)

    def verdicts(self) -> list[dict]:
        """Requests for verdicts so far."""
        return [r for r in self.requests if r["messages"][-1]["content"].startswith("[Question]\n")]

    def answers(self, model: str) -> list[str]:
        """The prompts of a model's requests in the order of arrival, without those for verdicts."""
        asked = [r["messages"][-1]["content"] for r in self.requests if r["model"] == model]
        return [prompt for prompt in asked if not prompt.startswith("[Question]\n")]

    def _behave(self, prompt: str, attempt: int) -> Reply:
        if not prompt.startswith("[Question]\n"):
            return Reply(
                text=f"{self._model.name} on {prompt} quality={self.quality(self._model.name, prompt):g}",
                seconds=self.seconds,
            )
        first, second = (float(_QUALITY.search(answer)[1]) for _, answer in _SHOWN.findall(prompt))
        said = self.verdict(first, second, prompt, attempt)
        return said if isinstance(said, Reply) else Reply(text=said, seconds=self.seconds)
