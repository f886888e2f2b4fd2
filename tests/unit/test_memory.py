"""Memory: large tensors are there when they are written, buffers come back, and a peer takes four times its model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wantrain.errors import WantrainError
from wantrain.transport.memory import Pool, big, bytes_of, peak_bytes

MIB = 2**20


def filled(value: int, size_bytes: int) -> "memoryview":
    return bytes_of(torch.full((size_bytes,), value, dtype=torch.uint8))


# ---- large tensors


@pytest.mark.parametrize("elements", [0, 1, 1000, 3 * 2**18 + 5])
def test_a_big_tensor_is_zero_and_starts_at_a_page(elements: int) -> None:
    tensor = big(elements)
    assert tensor.shape == (elements,)
    assert tensor.dtype == torch.float32
    assert not tensor.any()
    assert tensor.data_ptr() % 4096 == 0
    tensor.fill_(1.0)
    assert not big(elements).any()


def test_a_view_keeps_the_memory() -> None:
    view = big(2**20)[5:10]
    view.fill_(2.0)
    others = [big(2**20).fill_(3.0) for _ in range(3)]
    assert len(others) == 3
    assert view.tolist() == [2.0] * 5


def test_memory_that_is_not_there_is_an_error_with_the_size() -> None:
    with pytest.raises(WantrainError, match="MiB of memory"):
        big(2**60)


# ---- the pool


def test_a_buffer_that_came_back_is_lent_again() -> None:
    pool = Pool()
    first = pool.lend(100, lambda out: 100)
    address = torch.frombuffer(first, dtype=torch.uint8).data_ptr()
    pool.take_back(first)
    again = pool.lend(100, lambda out: 40)
    assert torch.frombuffer(again, dtype=torch.uint8).data_ptr() == address
    assert again.nbytes == 40
    assert pool.size_bytes == 100
    assert pool.lent == 1


def test_what_is_lent_is_not_overwritten() -> None:
    pool = Pool()

    def ones(out: Tensor) -> int:
        out.fill_(1)
        return 8

    def twos(out: Tensor) -> int:
        out.fill_(2)
        return 8

    first, second = pool.lend(8, ones), pool.lend(8, twos)
    assert (bytes(first), bytes(second)) == (b"\1" * 8, b"\2" * 8)
    assert pool.size_bytes == 16


def test_a_filling_that_fails_leaves_nothing_lent() -> None:
    pool = Pool()

    def fails(out: Tensor) -> int:
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            pool.lend(64, fails)
    assert (pool.lent, pool.size_bytes) == (0, 64)


def test_what_is_not_from_the_pool_or_comes_back_twice_is_left_alone() -> None:
    pool = Pool()
    payload = pool.lend(8, lambda out: 8)
    pool.take_back(filled(1, 8))
    assert pool.lent == 1
    pool.take_back(payload)
    pool.take_back(payload)
    pool.take_back(b"bytes")
    first, second = pool.lend(8, lambda out: 8), pool.lend(8, lambda out: 8)
    assert pool.size_bytes == 16
    assert first is not second


# ---- the process


def test_the_peak_is_at_least_what_is_held_in_bytes() -> None:
    held = [big(MIB).fill_(1.0) for _ in range(16)]
    assert sum(4 * tensor.numel() for tensor in held) < peak_bytes() < 2**40


CYCLE = """
import json, sys
import torch
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.messages import TensorSpec
from wantrain.transport.codec import codec
from wantrain.transport.memory import peak_bytes
torch.set_num_threads(1)

def cycle(elements, path):
    '''Two syncs of a peer that owns half of the chunks, and the state sent to a newcomer.'''
    stream = Stream("param", merge="nesterov", codec="int8")
    engine = Engine((TensorSpec("w", (elements,), "float32"),), [stream])
    segment = engine.open_segment(path)
    chunks = range(len(engine._vectors["param"].bounds))
    segment.out("param").fill_(1.0)
    engine.adopt_genesis()
    engine.grant("param", "start")
    for _ in range(2):
        torch.sub(segment.given("param"), 0.01, out=segment.out("param"))
        engine.stage("param")
        engine.use_stage("param")
        update = []
        for k in chunks:
            part = engine.part("param", k)
            update.append(engine.reduce("param", k, [(1.0, None), (1.0, part)], 2.0, True))
            engine.release(part)
        engine.settle("param", True)
        engine.apply("param", update)
        engine.grant("param", "merge")
    for k in chunks:
        engine.release(engine.read_state(k))
    engine.state_digest()
    expected, update_bytes = engine.expected_bytes, sum(map(engine.size_bytes, update))
    assert engine.resident_bytes <= expected + 8192, (engine.resident_bytes, expected)
    engine.close()
    return expected, update_bytes

elements = int(sys.argv[1])
cycle(2**16, sys.argv[2] + "-small")  # code, threads and scratch of the codecs
before = peak_bytes()
expected, update_bytes = cycle(elements, sys.argv[2])
print(json.dumps({"taken": peak_bytes() - before, "expected": expected, "update": update_bytes}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_diloco_peer_takes_four_times_its_model_and_a_constant(tmp_path: Path) -> None:
    """out, given, phi and momentum; the constant: two updates as they were encoded, scratch and the pool."""
    model_bytes = 64 * MIB
    command = [sys.executable, "-c", CYCLE, str(model_bytes // 4), str(tmp_path / "segment")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["expected"] <= 4 * model_bytes + 16 * MIB
    assert 4 * model_bytes <= figures["taken"] <= figures["expected"] + 2 * figures["update"] + 8 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_malloc_is_told_to_keep_big_blocks_and_accepts_it() -> None:
    command = "from wantrain.transport.memory import keep_freed_memory; print(keep_freed_memory())"
    told = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"
