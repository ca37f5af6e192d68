"""Talks with an exported student, or any supported model, in the terminal.

    python -m gadjax.chat --model=/tmp/demo/export/generator

An empty line or Ctrl-D ends; /new forgets the conversation.
"""

from __future__ import annotations

from absl import flags

from gadjax import commands
from gadjax.errors import UserError

FLAGS = flags.FLAGS
_LIMIT = 256  # tokens of a response, unless the user says otherwise


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
    from gadjax.rollout.chat_model import load_chat_model

    commands.use_compilation_cache()
    model = load_chat_model(FLAGS.model, batch_size=1)
    sampling = model.sampling(
        max_response_length=FLAGS.max_response_length or _LIMIT,
        temperature=FLAGS.temperature,
        top_p=FLAGS.top_p,
    )
    opening = [{"role": "system", "content": FLAGS.system}] if FLAGS.system else []
    chat = list(opening)
    turn = 0
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            break
        if not text:
            break
        if text == "/new":
            chat = list(opening)
            continue
        chat.append({"role": "user", "content": text})
        try:
            reply = model.answer([chat], sampling, seed=FLAGS.seed + turn, fit=FLAGS.max_response_length is None)[0]
        except UserError as error:  # the conversation has outgrown the model; the user can start a new one
            print(f"{error}; /new starts again")
            chat.pop()
            continue
        print(reply.text)
        chat.append({"role": "assistant", "content": reply.text})
        turn += 1


if __name__ == "__main__":
    define_flags()
    commands.run(main)
