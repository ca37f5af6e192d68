"""Decoding on one GPU in bfloat16: the attention kernel beside the loop that it replaces, and whole rollouts.

    python -m benchmarks.gpu_decode

A shape is rows, key-value heads, queries per head, head size and positions; rows see 0 to all positions, evenly spread.
"error" compares the kernel's attention with the loop's in float32, ||got - wanted|| / ||wanted||. GB/s counts the keys
and values that are seen, read once. Rollouts have random weights in the shape of SmolLM2-135M, 64 prompt tokens and
128 response tokens, as many rows as slots; "gap" is the mean distance, in nats, of the sampler's log-probs from those
that training computes on the same tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import command, models, report
from gadjax.data.packing import one_per_row
from gadjax.distill.forward import response_logprobs
from gadjax.errors import UserError, run_command
from gadjax.kernels import choose, kv_cache, triton_decode
from gadjax.kernels.kv_cache import Cache
from gadjax.kernels.online_softmax import Partial
from gadjax.models import layouts
from gadjax.models.model import Model
from gadjax.models.weights import load_params, read_hf_config
from gadjax.parallel import mesh as meshes
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling

SHAPES = [  # responses and a group's prompts of a 3B student; responses of SmolLM2 and of a 7B student
    (128, 2, 8, 128, 1536),
    (16, 2, 64, 128, 2048),
    (64, 3, 3, 64, 192),
    (256, 8, 4, 128, 1536),
]
SLOTS = (16, 64, 512)
PROMPT, RESPONSE = 64, 128
_CALLS = 100  # in one timed program: one alone would be lost in the time of its launch
_QUICK = {"shapes": [(4, 2, 3, 16, 40)], "slots": (2,), "calls": 2, "model": models.TINY}


def attention(shape: tuple[int, ...], rounds: int, calls: int, *, interpret: bool) -> dict[str, Any]:
    """Measures one shape: the kernel's error, and the seconds of a call of each side."""
    rows, heads, queries, head_dim, limit = shape
    keys = jax.random.split(jax.random.key(0), 3)
    key, value = (jax.random.normal(k, (rows, limit, heads, head_dim), jnp.bfloat16) for k in keys[:2])
    cache = kv_cache.put_rows(kv_cache.empty(rows, limit, heads, head_dim, "bfloat16"), key, value, jnp.arange(rows))
    query = jax.random.normal(keys[2], (rows, heads, queries, head_dim)) * head_dim**-0.5
    query, lengths = query.astype(jnp.bfloat16), jnp.linspace(0, limit, rows).astype(jnp.int32)
    kernel = functools.partial(triton_decode.attend, interpret=interpret)
    with jax.default_matmul_precision("highest"):
        exact = jax.tree.map(lambda x: x.astype(jnp.float32), cache)
        wanted = jax.jit(kv_cache.attend)(query.astype(jnp.float32), exact, lengths)
    got, wanted = (_answer(part)[np.asarray(lengths) > 0] for part in (jax.jit(kernel)(query, cache, lengths), wanted))
    return {
        "shape": shape,
        "error": float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)),
        "kernel": _seconds(kernel, query, cache, lengths, rounds, calls),
        "loop": _seconds(kv_cache.attend, query, cache, lengths, rounds, calls),
        "bytes": 2 * 2 * int(lengths.sum()) * heads * head_dim,
    }


def rollout(directory: pathlib.Path, slots: int, rounds: int) -> dict[str, Any]:
    """Measures rollouts with one number of slots: seconds, and the distance to training's log-probs."""
    mesh = meshes.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    config = dataclasses.replace(read_hf_config(directory)[0], dtype="bfloat16")
    model = Model(config, "lm", mesh)
    params = load_params(directory, config, layouts.abstract_params(model, mesh, config.dtype))
    prompts = np.random.default_rng(slots).integers(1, config.vocab_size, (slots, PROMPT)).astype(np.int32)
    engine = Engine(model, mesh, batch_size=slots)
    generate = functools.partial(engine.generate, params, list(prompts), Sampling(RESPONSE, (), temperature=1.0))
    answers = generate()
    seconds = [_timed(generate) for _ in range(rounds)]
    lengths = np.full(slots, PROMPT), np.full(slots, RESPONSE)
    rows = one_per_row(prompts, lengths[0], np.stack([answer.tokens for answer in answers]), lengths[1])
    trained = jax.jit(lambda p, r: response_logprobs(model, p, r, temperature=1.0, chunk=1024)[0])(params, rows)
    trained = np.asarray(trained).reshape(slots, -1)[:, :RESPONSE]
    gap = np.abs(trained - np.stack([answer.logprobs for answer in answers]))
    return {"slots": slots, "seconds": seconds, "tokens": slots * RESPONSE, "gap": float(gap.mean())}


def _answer(part: Partial) -> np.ndarray:
    return np.asarray(part.mixed) / np.maximum(np.asarray(part.total), 1e-30)[..., None]


def _seconds(attend: Callable[..., Partial], query, cache: Cache, lengths, rounds: int, calls: int) -> list[float]:
    """Seconds of one call, in each round. A call's queries depend on the call before."""

    def chained(query, cache, lengths):
        step = lambda _, q: q + (attend(q, cache, lengths).mixed * 1e-9).astype(q.dtype)  # noqa: E731
        return jax.lax.fori_loop(0, calls, step, query)

    run = jax.jit(chained)
    jax.block_until_ready(run(query, cache, lengths))
    return [_timed(lambda: jax.block_until_ready(run(query, cache, lengths))) / calls for _ in range(rounds)]


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    arguments = command.parse(command.parser("benchmarks.gpu_decode", __doc__))
    device = jax.devices()[0]
    if not arguments.quick and choose.cache_attention(None, "bfloat16", 128) is not triton_decode.attend:
        raise UserError(f"{device.device_kind}: the kernel runs on CUDA GPUs from Ampere on; --quick interprets it")
    shapes, slots, calls, fields = _QUICK.values() if arguments.quick else (SHAPES, SLOTS, _CALLS, models.SMOLLM2)
    found = [attention(shape, arguments.rounds, calls, interpret=arguments.quick) for shape in shapes]
    lines = []
    for result in found:
        kernel, loop = (statistics.median(result[side]) for side in ("kernel", "loop"))
        rate = result["bytes"] / kernel / 1e9
        times = [f"{kernel * 1e6:.0f}", f"{loop * 1e6:.0f}", f"{loop / kernel:.1f}"]
        lines.append([" x ".join(map(str, result["shape"])), f"{result['error']:.1e}", *times, f"{rate:.0f}"])
    print(report.table(["shape", "error", "kernel, us", "loop, us", "loop / kernel", "GB/s"], lines), "\n")

    directory = pathlib.Path(models.write_models(models.FOLDER, fields)["generator"])
    rollouts = [rollout(directory, count, arguments.rounds) for count in slots]
    rates = [
        [str(r["slots"]), f"{r['tokens'] / statistics.median(r['seconds']):.0f}", f"{r['gap']:.4f}"] for r in rollouts
    ]
    print(report.table(["slots", "tokens/s", "gap"], rates))
    report.write(arguments.out, {"device": device.device_kind, "attention": found, "rollouts": rollouts})


if __name__ == "__main__":
    run_command(main)
