"""Answers that a model of ours draws to prompts, as Parquet in gadjax's schema."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.evidence import runs
from benchmarks.evidence.runs import Cost
from benchmarks.harness.command import progress
from gadjax.data.chats import Messages
from gadjax.data.schema import read_rows
from gadjax.files import whole_output
from gadjax.rollout.chat_model import load_network
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema([("content", _TURNS), ("teacher_response", pa.string()), ("finish_reason", pa.string())])
_SLOTS = 256  # answers that are decoded at once


def prompts_of(path: pathlib.Path, limit: int = 0) -> list[Messages]:
    """The different chats of a file, in its order; the first `limit` of them, or all."""
    rows = read_rows(path)
    chats = {str(chat := rows.messages(i)): chat for i in range(len(rows))}
    return list(chats.values())[: limit or None]


def draw(
    model: pathlib.Path,
    chats: Sequence[Messages],
    count: int,
    limit: int,
    seed: int,
    out: pathlib.Path,
    *,
    keep_cut: bool = False,
) -> Cost:
    """Draws `count` answers in all at temperature 1, in turn to each chat, and keeps those that ended.

    Args:
      model: the folder of a causal language model.
      chats: the prompts.
      count: answers to draw.
      limit: tokens of an answer, at most.
      seed: of the draws.
      keep_cut: keeps answers that the limit cut too, as `finish_reason` says.
      out: the Parquet file. What it took is kept beside it as JSON; where both exist, nothing is drawn.

    Returns:
      What it took; its `sampled_tokens` are those of all answers, the cut ones among them.
    """
    kept = out.with_suffix(".json")
    if out.exists() and (found := runs.read_json(kept)):
        return Cost(found["seconds"], found["sampled_tokens"])
    progress(f"{count} answers of {model}: {out}")
    with runs.timed() as time:
        network = load_network(str(model), "lm", dtype="float32")
        tokenizer = network.tokenizer
        chosen = [chats[i % len(chats)] for i in range(count)]
        sampling = Sampling(limit, tuple(tokenizer.eos_ids), tokenizer.pad_id, temperature=1.0)
        engine = Engine(network.model, network.mesh, batch_size=min(_SLOTS, count))
        found = engine.generate(network.params, tokenizer.prompt_ids_batch(chosen), sampling, seed=seed)
        texts = [tokenizer.decode(answer.tokens) for answer in found]
    rows = [
        {"content": chat, "teacher_response": text, "finish_reason": "stop" if answer.ended else "length"}
        for chat, text, answer in zip(chosen, texts, found, strict=True)
        if (answer.ended or keep_cut) and text.strip()
    ]
    # An answer whose tokens are not those that its text is encoded with was drawn with another likelihood.
    encoded = tokenizer.response_ids_batch(texts, [answer.ended for answer in found])
    same = sum(list(ids) == list(answer.tokens) for ids, answer in zip(encoded, found, strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_output(out) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial, compression="zstd")
    cost = Cost(time["seconds"], sum(len(answer.tokens) for answer in found))
    drawn = {"drawn": count, "kept": len(rows), "encoded_as_drawn": same}
    runs.write_json(kept, {"seconds": cost.seconds, "sampled_tokens": cost.sampled_tokens, **drawn})
    progress(f"{len(rows)} of {count} answers ended; {same} are encoded as they were drawn")
    return cost
