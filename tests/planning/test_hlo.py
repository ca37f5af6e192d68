"""Reading compiled programs: text written by hand, as compilers for TPUs and GPUs write it, and text of the CPU's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.models.logprobs import LOGITS, token_logprobs
from gadjax.parallel import mesh as meshes
from gadjax.planning.hlo import HloProgram
from gadjax.planning.hlo_costs import bytes_moved, collectives, largest_buffers, logit_positions

# A loop without a stated trip count, whose end is in its condition, around a scratch copy, a slice and a collective.
LOOP = """HloModule jit_f, is_scheduled=true

%fused (param_0.1: bf16[36,128,64], param_1.1: s32[]) -> bf16[128,64] {
  %param_0.1 = bf16[36,128,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  %slice.1 = bf16[1,128,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0.1, %param_1.1), dynamic_slice_sizes={1,128,64}
  ROOT %bitcast.1 = bf16[128,64]{1,0:T(8,128)(2,1)} bitcast(%slice.1)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body.2 (state: (s32[], bf16[36,128,64])) -> (s32[], bf16[36,128,64]) {
  %state = (s32[]{:T(128)}, /*index=1*/bf16[36,128,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state), index=0
  %stack = bf16[36,128,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %layer = bf16[128,64]{1,0:T(8,128)} fusion(%stack, %count), kind=kLoop, calls=%fused, metadata={op_name="f/x"}
  %fetch = (bf16[128,64]{1,0:T(8,128)(2,1)}, bf16[128,64]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%layer)
  %fetched = bf16[128,64]{1,0:T(8,128)(2,1)S(1)} copy-done(%fetch)
  %all-reduce.1 = f32[128]{0:T(128)} all-reduce(%fetched), channel_id=1, to_apply=%sum, metadata={op_name="jit(f)/y"}
  ROOT %next = (s32[]{:T(128)}, bf16[36,128,64]{2,1,0:T(8,128)(2,1)}) tuple(%count, %stack)
}

%until.3 (state.1: (s32[], bf16[36,128,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(36)
  %state.1 = (s32[]{:T(128)}, bf16[36,128,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %count.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%count.1, %limit), direction=LT
}

ENTRY %main.4 (stack.1: bf16[36,128,64]) -> bf16[36,128,64] {
  %stack.1 = bf16[36,128,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %tuple.1 = (s32[]{:T(128)}, bf16[36,128,64]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %stack.1)
  %while.1 = (s32[]{:T(128)}, bf16[36,128,64]{2,1,0:T(8,128)(2,1)}) while(%tuple.1), condition=%until.3, body=%body.2
  ROOT %out = bf16[36,128,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""


def test_loops_are_counted():
    program = HloProgram(LOOP)
    assert program.entry == "main.4"
    assert program.repeats["body.2"] == program.repeats["fused"] == (36, ("",))
    (found,) = collectives(program)
    assert found == ("all-reduce", 512, 36, ("",), "jit(f)/y")


def test_a_stated_trip_count_is_believed():
    known = LOOP.replace("body=%body.2", 'body=%body.2, backend_config={"known_trip_count":{"n":"7"}}')
    assert collectives(HloProgram(known))[0].times == 7


def test_a_named_loop_runs_as_often_as_is_said():
    named = LOOP.replace("body=%body.2", 'body=%body.2, metadata={op_name="jit(f)/outer/steps/while"}')
    program = HloProgram(named, {"steps": 11})
    (found,) = collectives(program)
    assert (found.times, found.loops) == (11, ("steps",))
    program.check_loop("steps")
    with pytest.raises(ValueError, match="no loop of the name other"):
        program.check_loop("other")


def test_bytes_are_those_of_slices_and_of_main_memory():
    """A layer sliced from its stack is read and written, copied to scratch once more, and summed from there."""
    layer, place, condition = 128 * 64 * 2, 4, 1 + 4 + 4
    assert bytes_moved(HloProgram(LOOP)) == 36 * (2 * layer + place + layer + 512 + condition)


def test_the_largest_arrays_are_in_main_memory():
    first, second, *_ = largest_buffers(HloProgram(LOOP))
    assert (str(first.array), first.array.bytes) == ("bf16[36,128,64]", 36 * 128 * 64 * 2)
    assert (str(second.array), second.op_name) == ("bf16[128,64]", "f/x")


def test_logits_are_told_from_weights():
    text = LOOP.replace("bf16[128,64]", "f32[24,640]").replace("bf16[36,128,64]", "bf16[640,64]")
    assert logit_positions(HloProgram(text), 640, {64}, "logits") == 24
    assert logit_positions(HloProgram(text), 640, {64, 24}, "logits") == 0


@pytest.mark.parametrize("backward", [False, True])
def test_logits_as_large_as_a_weight(backward):
    """A device's chunk has as many positions as its part of a weight has channels, 64 / 4."""
    mesh = meshes.make_mesh(1, 4, 2)
    sizes = 640 // 2, {64, 64 // 4, 64 // 2, 64 // 8}
    array = lambda spec, *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))  # noqa: E731
    hidden, head, targets = array(P("fsdp"), 8, 40, 64), array(P("tensor", "fsdp"), 640, 64), array(P("fsdp"), 8, 40)
    source = jnp.tile(jnp.arange(40), (8, 1))

    def loss(hidden, head, targets):
        return token_logprobs(hidden, head, source, targets.astype(int), chunk=16, mesh=mesh)[0].sum()

    f = jax.grad(loss, argnums=(0, 1)) if backward else loss
    program = HloProgram(jax.jit(f).lower(hidden, head, targets).compile().as_text())
    assert logit_positions(program, *sizes, LOGITS) == 16
    assert logit_positions(program, *sizes, "elsewhere") == 0


def test_weights_alone_are_no_logits():
    """A weight that is gathered and cast is not mistaken for logits, whatever the size of its other axis."""
    mesh = meshes.make_mesh(1, 4, 2)
    split, whole = (NamedSharding(mesh, spec) for spec in (P("tensor", "fsdp"), P("tensor")))
    table = jax.ShapeDtypeStruct((640, 64), jnp.float32, sharding=split)
    cast = jax.jit(lambda table: table.astype(jnp.bfloat16), out_shardings=whole).lower(table).compile()
    assert logit_positions(HloProgram(cast.as_text()), 320, {64, 16}, LOGITS) == 0


@pytest.mark.parametrize("steps", [3, 11])
def test_on_a_real_program(steps):
    """On eight devices, each step of a scan gathers the weights once."""
    mesh = meshes.make_mesh(1, 8, 1)
    split = NamedSharding(mesh, P("fsdp", None))
    whole = NamedSharding(mesh, P())

    def f(x, w):
        def step(state, _):
            x, w = state
            x = jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole))
            return (x, jax.lax.with_sharding_constraint(jnp.sin(w), split)), None

        return jax.lax.scan(step, (x, w), length=steps)[0]

    shape = lambda *size, sharding: jax.ShapeDtypeStruct(size, jnp.float32, sharding=sharding)  # noqa: E731
    compiled = jax.jit(f).lower(shape(16, 64, sharding=split), shape(64, 64, sharding=split)).compile()
    gathers = [found for found in collectives(HloProgram(compiled.as_text())) if found.op == "all-gather"]
    assert [(found.bytes, found.times, found.in_loop) for found in gathers] == [(64 * 64 * 4, steps, True)]


def test_collectives_inside_fusions_count_once_a_channel():
    """On TPUs two fusions, its start and its end, hold one gather. A sum with a slice is a reduce-scatter."""
    fused = """
%async (a.1: bf16[128,64]) -> bf16[256,64] {
  %a.1 = bf16[128,64]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[256,64]{1,0} all-gather(%a.1), channel_id=5, dimensions={0}
}

%async.2 (a.2: bf16[128,64]) -> bf16[256,64] {
  %a.2 = bf16[128,64]{1,0} parameter(0)
  ROOT %all-gather.10 = bf16[256,64]{1,0} all-gather(%a.2), channel_id=5, dimensions={0}
}

%all-reduce-scatter.3 (a.3: bf16[256,64]) -> bf16[128,64] {
  %a.3 = bf16[256,64]{1,0} parameter(0)
  %all-reduce.8 = bf16[256,64]{1,0} all-reduce(%a.3), channel_id=6, to_apply=%sum
  ROOT %own = bf16[128,64]{1,0} slice(%all-reduce.8), slice={[0:128], [0:64]}
}
"""
    calls = """
  %begun = bf16[256,64]{1,0} fusion(%layer), kind=kCustom, calls=%async
  %ended = bf16[256,64]{1,0} fusion(%layer), kind=kCustom, calls=%async.2
  %part = bf16[128,64]{1,0} fusion(%begun), kind=kCustom, calls=%all-reduce-scatter.3
"""
    head, body = LOOP.split("%body.2 (", 1)
    text = head + fused.lstrip() + "\n%body.2 (" + body.replace("  ROOT %next", calls.lstrip("\n") + "  ROOT %next", 1)
    found = sorted((c.op, c.bytes, c.times, c.in_loop) for c in collectives(HloProgram(text)))
    size = 256 * 64 * 2
    assert found == [("all-gather", size, 36, True), ("all-reduce", 512, 36, True), ("reduce-scatter", size, 36, True)]


SCATTER = """HloModule jit_f, is_scheduled=true

%fused (p0: bf16[64,2,128], p1: s32[4,1], p2: bf16[4,2,128]) -> bf16[64,2,128] {
  %p0 = bf16[64,2,128]{2,1,0} parameter(0)
  %p1 = s32[4,1]{1,0} parameter(1)
  %p2 = bf16[4,2,128]{2,1,0} parameter(2)
  ROOT %put = bf16[64,2,128]{2,1,0} scatter(%p0, %p1, %p2), to_apply=%last
}

ENTRY %main (cache: bf16[64,2,128], rows: s32[4,1], new: bf16[4,2,128]) -> bf16[64,2,128] {
  %cache = bf16[64,2,128]{2,1,0} parameter(0)
  %rows = s32[4,1]{1,0} parameter(1)
  %new = bf16[4,2,128]{2,1,0} parameter(2)
  ROOT %fusion = bf16[64,2,128]{2,1,0} fusion(%cache, %rows, %new), kind=kInput, calls=%fused
}
"""


def test_a_scatter_in_place_moves_what_it_puts():
    """The keys of a token count, and not the cache that they are written to."""
    new = 4 * 2 * 128 * 2
    assert bytes_moved(HloProgram(SCATTER)) == 2 * new + 4 * 4


NESTED = """HloModule jit_g, is_scheduled=true

%inner (q0: bf16[12,64,128], q1: s32[]) -> bf16[64,128] {
  %q0 = bf16[12,64,128]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %block = bf16[1,64,128]{2,1,0} dynamic-slice(%q0, %q1, %zero, %zero), dynamic_slice_sizes={1,64,128}
  ROOT %flat = bf16[64,128]{1,0} bitcast(%block)
}

%outer (p0: bf16[8,128], p1: bf16[12,64,128], p2: s32[]) -> f32[64,8] {
  %p0 = bf16[8,128]{1,0} parameter(0)
  %p1 = bf16[12,64,128]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %one = bf16[64,128]{1,0} fusion(%p1, %p2), kind=kLoop, calls=%inner
  ROOT %dot = f32[64,8]{1,0} dot(%one, %p0), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

ENTRY %main (query: bf16[8,128], cache: bf16[12,64,128], place: s32[]) -> f32[64,8] {
  %query = bf16[8,128]{1,0} parameter(0)
  %cache = bf16[12,64,128]{2,1,0} parameter(1)
  %place = s32[] parameter(2)
  ROOT %fusion = f32[64,8]{1,0} fusion(%query, %cache, %place), kind=kOutput, calls=%outer
}
"""


def test_a_slice_in_a_fusion_in_a_fusion_moves_the_slice():
    """TPUs read one block of a cache like this. If another operation reads all of it, the whole cache counts."""
    block, rest = 64 * 128 * 2, 8 * 128 * 2 + 4 + 64 * 8 * 4
    assert bytes_moved(HloProgram(NESTED)) == block + rest
    whole = NESTED.replace("  ROOT %flat", "  %all = bf16[12,64,128]{2,1,0} negate(%q0)\n  ROOT %flat")
    assert bytes_moved(HloProgram(whole)) == 12 * block + rest
