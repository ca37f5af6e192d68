"""Answers prompts with an exported student, or any supported model.

    python -m gadjax.generate --model=/tmp/demo/export/generator --prompts=p.jsonl --out=o.jsonl --temperature=0

Prompts are read as by gadjax.collect: JSONL or Parquet with `prompt` (text) or `content` (a chat), or a text file with
one prompt a line. Each line of the output holds `id`, `content`, `response`, `finish_reason` ("stop", or "length" if
the limit cut the response) and `tokens`.
"""

from __future__ import annotations

from absl import flags

from gadjax import commands

FLAGS = flags.FLAGS
_LIMIT = 512  # tokens of a response, unless the user says otherwise


def define_flags() -> None:
    """Defines the command's flags. Not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", None, "Hugging Face directory or hub id.", required=True)
    flags.DEFINE_string("prompts", None, "File of prompts: .jsonl, .parquet or .txt.", required=True)
    flags.DEFINE_string("out", None, "JSONL file to write.", required=True)
    flags.DEFINE_float("temperature", 0.8, "0 is greedy.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens of this total mass.", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer("top_k", 0, "Draw from the likeliest k tokens; 0: from all.", lower_bound=0)
    flags.DEFINE_integer(
        "max_response_length",
        None,
        f"Most tokens of a response; default: {_LIMIT}, or fewer if the model has no room.",
        lower_bound=1,
    )
    flags.DEFINE_integer("batch_size", 64, "Prompts decoded at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the sampling.")
    flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "auto: float32 on CPU, else bfloat16.")


def main(argv: list[str]) -> None:
    del argv
    from rich.console import Console

    from gadjax.data.prompts import read_prompts
    from gadjax.progress import RunProgress
    from gadjax.rollout.chat_model import load_chat_model

    prompts = read_prompts(FLAGS.prompts)
    with commands.jsonl_output(FLAGS.out) as write:
        commands.use_compilation_cache()
        model = load_chat_model(FLAGS.model, dtype=FLAGS.dtype, batch_size=FLAGS.batch_size)
        sampling = model.sampling(
            max_response_length=FLAGS.max_response_length or _LIMIT,
            temperature=FLAGS.temperature,
            top_p=FLAGS.top_p,
            top_k=FLAGS.top_k,
        )
        with RunProgress(console=Console(stderr=True)) as progress:
            progress.update("generating", 0, len(prompts))
            replies = model.answer(
                [prompt.content for prompt in prompts],
                sampling,
                seed=FLAGS.seed,
                fit=FLAGS.max_response_length is None,
                done=lambda count: progress.update("generating", count, len(prompts)),
            )
        for prompt, reply in zip(prompts, replies, strict=True):
            write(
                {
                    "id": prompt.id,
                    "content": prompt.content,
                    "response": reply.text,
                    "finish_reason": "stop" if reply.ended else "length",
                    "tokens": reply.tokens,
                }
            )
    print(f"{len(prompts)} answers: {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    commands.run(main)
