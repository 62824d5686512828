"""Bytes that a compiled program sends, on texts written by hand and on real programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from experiments.planning import hlo

TEXT = """
HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: f32[16]) -> f32[4] {
  %p = f32[16]{0:T(128)} parameter(0)
  ROOT %scattered = f32[4]{0:T(128)} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %v = f32[8]{0} get-tuple-element(%state), index=1
  %reduced.1 = f32[8]{0:T(256)} all-reduce(%v), channel_id=1, to_apply=%add
  ROOT %next = (s32[], /*index=1*/f32[8]{0}) tuple(%i, %reduced.1)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[16]) -> f32[8] {
  %a = f32[16]{0} parameter(0)
  %gather-start = (f32[2]{0}, bf16[10]{0:T(8,128)(2,1)S(1)}) all-gather-start(%b), dimensions={0}
  %gather-done = bf16[10]{0:T(8,128)(2,1)} all-gather-done(%gather-start)
  %both = (f32[3,2]{1,0}, s8[5]{0}) all-reduce(%a, %b), to_apply=%add
  %small = f32[4]{0} fusion(%a), kind=kCustom, calls=%fused
  %loop = (s32[], f32[8]{0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_each_kind_is_counted_by_its_result():
    assert hlo.collective_bytes(TEXT) == {
        "all-gather": 20,  # start and done: once
        "all-reduce": 3 * 2 * 4 + 5 + 5 * 8 * 4,  # a tuple, and five turns of a loop
        "reduce-scatter": 16,  # inside a fusion
    }


def test_a_loop_of_unknown_length_counts_once():
    unknown = TEXT.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert hlo.collective_bytes(unknown)["all-reduce"] == 3 * 2 * 4 + 5 + 8 * 4


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[8,4]{1,0}", 128), ("pred[]", 1), ("bf16[3]", 6), ("f8e4m3fn[7]", 7), ("s4[3]", 2), ("(u32[2], f64[1])", 16)],
)
def test_sizes(shape, size):
    assert hlo.size_of(shape) == size


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def test_an_all_reduce_that_was_asked_for(mesh):
    def total(x):
        return jax.shard_map(lambda part: jax.lax.psum(part, "data"), mesh=mesh, in_specs=P("data"), out_specs=P())(x)

    text = compiled(total, jnp.zeros((8, 100), jnp.float32))
    assert hlo.collective_bytes(text) == {"all-reduce": 400}


def test_an_all_reduce_inside_a_scan(mesh):
    def total(x):
        turn = jax.shard_map(
            lambda part: jax.lax.pmean(part, "data"), mesh=mesh, in_specs=P("data"), out_specs=P("data")
        )
        return jax.lax.scan(lambda carry, _: (turn(jnp.sin(carry)), None), x, None, length=6)[0]

    text = compiled(total, jnp.zeros((8, 100), jnp.float32))
    assert hlo.collective_bytes(text) == {"all-reduce": 6 * 400}


def test_one_device_sends_nothing():
    assert hlo.collective_bytes(compiled(lambda x: x @ x, np.ones((4, 4), np.float32))) == {}
