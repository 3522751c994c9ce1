"""Collectives and loops, read from the text of compiled programs."""

import pytest

from qdgs_jax import collectives

TEXT = """\
HloModule jit_run, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %again = f32[4]{0} all-reduce(%p), channel_id=1, to_apply=%add
}

%inner (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %product = f32[4]{0} dot(%s, %s)
  ROOT %all = bf16[2,8]{1,0} all-to-all(%product), channel_id=2
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %reduced = (f32[4]{0:T(128)}, pred[3]{0}) all-reduce(%s, %s), channel_id=1, to_apply=%add
  %start = (f32[4]{0}, f32[16]{0:T(8,128)}, u32[]) all-gather-start(%s), channel_id=3
  %done = f32[16]{0} all-gather-done(%start)
  %fusion = f32[4]{0} fusion(%s), kind=kLoop, calls=%fused
  %chunks = (s32[], f32[4]{0}) while(%s), condition=%add, body=%inner
  ROOT %next = (s32[], f32[4]{0}) tuple(%s)
}

ENTRY %main (p: f32[4]) -> f32[] {
  %p = f32[4]{0} parameter(0)
  %scan = (s32[], f32[4]{0}) while(%p), condition=%add, body=%body, \
backend_config={"known_trip_count":{"n":"20"}}
  ROOT %total = f32[] all-reduce(%scan), channel_id=4, to_apply=%add, \
metadata={op_name="jit(run)/reduce_sum"}
}
"""


def test_each_channel_counts_once_in_its_loop() -> None:
    found = collectives.read(TEXT)
    assert {(each.kind, each.depth) for each in found.generation()} == {
        ("all-reduce", 1), ("all-gather", 1), ("all-to-all", 2),
    }  # fmt: skip
    assert [each.kind for each in found.inner()] == ["all-to-all"]
    outside = set(found.collectives) - set(found.generation())
    assert {(each.bytes, each.source) for each in outside} == {(4, "jit(run)/reduce_sum")}


def test_bytes_are_those_of_results() -> None:
    found = {each.kind: each.bytes for each in collectives.read(TEXT).generation()}
    assert found["all-gather"] == 64  # neither the operand nor the context
    assert found["all-to-all"] == 32


def test_a_tuple_counts_whole() -> None:
    text = TEXT.replace("calls=%fused", "calls=%add")
    reduced = [each for each in collectives.read(text).generation() if each.kind == "all-reduce"]
    assert [each.bytes for each in reduced] == [16 + 3]


def test_loops_know_their_trips_and_products() -> None:
    found = collectives.read(TEXT)
    assert {(loop.trips, loop.depth, loop.products) for loop in found.loops} == {
        (20, 0, True), (None, 1, True),
    }  # fmt: skip
    assert len(found.chunk_loops()) == 1


def test_other_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives.read("module @jit_run {}")
