"""Talks with an exported student, or any supported model, in the terminal.

    python -m gadjax.chat --model=/tmp/demo/export/generator

The reply appears while it is drawn. Ctrl-C stops a reply: what was said until then stays in the conversation. Ctrl-C or
Ctrl-D at the prompt ends the chat. /help lists the commands.

Input may come from a pipe, a line for each message. Standard output holds the replies and nothing else; all other words
go to standard error.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from gadjax import commands
from gadjax.errors import UserError, unknown

if TYPE_CHECKING:
    from gadjax.data.chats import Messages
    from gadjax.data.tokenizer import ChatTokenizer
    from gadjax.rollout.chat_model import ChatModel
    from gadjax.rollout.sampler import Sampling

FLAGS = flags.FLAGS
_LIMIT = 256  # tokens of a response, unless the user says otherwise
_COMMANDS = {
    "/help": "shows this list",
    "/reset": "forgets the conversation, and keeps the system message",
    "/system TEXT": "sets the system message; without TEXT, removes it",
    "/quit": "ends the chat, as do Ctrl-D and Ctrl-C at the prompt",
}


def define_flags() -> None:
    """Defines the command's flags. Not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", None, "Hugging Face directory or hub id.", required=True)
    flags.DEFINE_string("system", "", "System message, if any.")
    flags.DEFINE_float("temperature", commands.TEMPERATURE, "0 is greedy.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens of this total mass.", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer(
        "max_response_length",
        None,
        f"Most tokens of a response; default: {_LIMIT}, or fewer if the model has no room.",
        lower_bound=1,
    )
    flags.DEFINE_integer("seed", 0, "Seed of the sampling.")


def main(argv: list[str]) -> None:
    del argv
    from gadjax.rollout.chat_model import chat_model, check_network

    commands.use_compilation_cache()
    _say(f"loading {FLAGS.model}")
    network = check_network(FLAGS.model, "lm")
    opening = _opening(network.tokenizer, FLAGS.system)
    chat = _Chat(chat_model(network.load(), batch_size=1), opening)
    _say("The first reply takes longer, since its program compiles; so do some later ones, as the conversation grows.")
    _say("/help lists the commands.")
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - `input` then edits lines and remembers them
    while True:
        try:
            text = input("> " if at_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            if at_terminal:
                _say("")
            return
        try:
            if text == "/quit":
                return
            if text.startswith("/"):
                chat.obey(text)
            elif text:
                chat.ask(text)
        except UserError as error:  # the conversation has outgrown the model, or the template refuses it
            _say(str(error))


class _Chat:
    """A conversation."""

    def __init__(self, model: ChatModel, opening: Messages):
        self._model, self._opening = model, opening
        self._said: Messages = []
        self._turn = 0

    def obey(self, line: str) -> None:
        """Does what a line that begins with "/" says; raises a `UserError` if it is no command."""
        name, _, text = line.partition(" ")
        if name == "/help":
            width = max(map(len, _COMMANDS))
            _say("\n".join(f"{command:<{width}}  {what}" for command, what in _COMMANDS.items()))
        elif name == "/reset":
            self._said = []
        elif name == "/system":
            self._opening = _opening(self._model.tokenizer, text.strip())
        else:
            known = [command.split()[0] for command in _COMMANDS]
            raise UserError(f"there is no command {name}{unknown(name, known)} /help lists the commands")

    def ask(self, text: str) -> None:
        """Prints the reply to a message while it is drawn, and remembers both.

        Raises:
          UserError: the model has no room for the conversation and its reply. The message is forgotten.
        """
        question = {"role": "user", "content": text}
        chat = [*self._opening, *self._said, question]
        said, stopped = "", False
        try:
            seed, fit = FLAGS.seed + self._turn, FLAGS.max_response_length is None
            for reply in self._model.stream(chat, self._sampling(), seed=seed, fit=fit):
                new, said = reply.text[len(said) :], reply.text
                print(new, end="", flush=True)
        except KeyboardInterrupt:
            stopped = True
        except UserError as error:
            raise UserError(f"{error}; /reset starts again" if self._said else str(error)) from None
        if said or not stopped:
            print(flush=True)
        if stopped:
            _say("(stopped)" if said else "(stopped before the first word: your message is forgotten)")
            if not said:
                return
        self._said += [question, {"role": "assistant", "content": said}]
        self._turn += 1

    def _sampling(self) -> Sampling:
        limit = FLAGS.max_response_length or _LIMIT
        return self._model.sampling(max_response_length=limit, temperature=FLAGS.temperature, top_p=FLAGS.top_p)


def _opening(tokenizer: ChatTokenizer, system: str) -> Messages:
    """The messages before the first question; raises a `UserError` if the chat template takes no system message."""
    opening = [{"role": "system", "content": system}] if system else []
    tokenizer.prompt_ids([*opening, {"role": "user", "content": "Hi"}])
    return opening


def _say(text: str) -> None:
    """Prints words of this command, which are not the model's."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    define_flags()
    commands.run(main)
