"""Work in a second thread: order, exceptions, and what happens when nobody wants the rest."""

from __future__ import annotations

import itertools
import json
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_hub.converters.containers import open_raw, write_tensors
from vit_hub.converters.containers.ahead import ahead, meanwhile
from vit_hub.converters.containers.pieces import Buffers, chunks, fill
from vit_hub.converters.tensors import LazyTensor, from_array


@given(st.lists(st.integers()))
def test_items_come_in_order(items: list[int]) -> None:
    assert list(ahead(iter(items))) == items


def test_an_exception_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise OSError("no more")

    found = ahead(items())
    assert list(itertools.islice(found, 20)) == list(range(20))
    with pytest.raises(OSError, match="no more"):
        next(found)


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_the_thread_ends_when_nobody_takes_the_rest(taken: int) -> None:
    before = threading.active_count()
    items = ahead(iter(range(10**9)))
    for _ in range(taken):
        next(items)
    items.close()
    assert threading.active_count() == before


def test_work_meanwhile_is_waited_for_and_cancelled() -> None:
    with meanwhile(lambda step: 6 * 7) as result:
        assert result() == 42
    steps = itertools.count()

    def endless(step: Callable[[int], None]) -> None:
        while True:
            step(next(steps))

    with pytest.raises(KeyError), meanwhile(endless):
        raise KeyError
    assert next(steps) < 10**7


def test_failed_work_is_an_error_where_its_result_is_wanted() -> None:
    def fail(step: Callable[[int], None]) -> None:
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"), meanwhile(fail) as result:
        result()


@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=4).flatmap(
        lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))))
    )
)
def test_a_row_major_copy_has_the_same_values(case: tuple[list[int], list[int]]) -> None:
    shape, order = case
    if np.prod(shape) > 200_000:
        shape = [size % 9 for size in shape]
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).transpose(order)
    copy = np.empty_like(array, order="C")
    fill(copy, array)
    np.testing.assert_array_equal(copy, array)
    assert b"".join(chunks(array, Buffers())) == array.tobytes()


def test_a_buffer_is_used_again_only_when_its_piece_is_given_back() -> None:
    buffers, values = Buffers(), np.arange(1 << 21, dtype=np.float32).reshape(1 << 10, 1 << 11)
    first, second, third, fourth = chunks(values.T, buffers)
    kept = [bytes(piece) for piece in (first, second, third)]
    buffers.give_back(second)
    (again,) = chunks(-values[:256].T, buffers)
    assert again.obj.base is second.obj.base
    assert b"".join((first, kept[1], third, fourth)) == values.T.tobytes()
    buffers.give_back(values.data)  # no buffer's
    assert buffers.take(3 << 20).nbytes == 3 << 20


def test_many_pieces_of_used_memory_hold_their_values(tmp_path: Path) -> None:
    values = np.arange(10 << 20, dtype=np.float32).reshape(1 << 11, -1)
    write_tensors(tmp_path / "x.safetensors", "safetensors", {"w": from_array(values).permute((1, 0))})
    assert np.array_equal(open_raw(tmp_path / "x.safetensors").tensors["w"].read(), values.T)


def metadata_of(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


TENSORS = {"b": from_array(np.arange(6, dtype=np.float32)), "a": from_array(np.zeros((0, 3), np.float16))}


def test_metadata_can_be_completed_at_the_end(tmp_path: Path) -> None:
    early, late = tmp_path / "early.safetensors", tmp_path / "late.safetensors"
    write_tensors(early, "safetensors", TENSORS, {"hash": "beef"})
    write_tensors(late, "safetensors", TENSORS, {"hash": "0000"}, finish=lambda: {"hash": "beef"})
    assert metadata_of(late) == {"hash": "beef"}
    assert early.read_bytes() == late.read_bytes()


def test_metadata_of_another_length_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes at first"):
        write_tensors(tmp_path / "x.safetensors", "safetensors", TENSORS, {"h": "0"}, finish=lambda: {"h": "0" * 99})
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_reading_leaves_no_file_and_no_thread(tmp_path: Path) -> None:
    def unreadable() -> np.ndarray:
        raise OSError("the disk is gone")

    before = threading.active_count()
    tensors = {**TENSORS, "c": LazyTensor("F32", (2,), unreadable)}
    for container, suffix in (("safetensors", ".safetensors"), ("npz", ".npz"), ("torch", ".pth")):
        with pytest.raises(Exception, match="the disk is gone"):
            write_tensors(tmp_path / f"x{suffix}", container, tensors)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before
