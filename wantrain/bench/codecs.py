"""What each codec costs and loses: error, bits and speed on one thread, beside the figures it was chosen for."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from wantrain.transport.codec import Codec, codec

EXPECTED: dict[str, tuple[float, float, float]] = {
    "fp32": (0.0, 0.0, 32.0),
    "bf16": (0.0017, 0.0017, 16.0),
    "bf16-planes": (0.0017, 0.0017, 10.9),
    "int8": (0.0070, 0.013, 7.44),
    "int4": (0.103, 0.153, 3.5),
    "e2m1": (0.106, 0.117, 3.82),
    "e3m0": (0.196, 0.19, 3.46),
    "rms0.35": (0.101, 0.101, 3.6),
    "rms0.5": (0.144, 0.144, 3.1),
    "rms0.75": (0.217, 0.217, 2.5),
    "rms1": (0.289, 0.289, 2.2),
    "sign": (0.60, 0.71, 1.0),
    "topk": (0.94, 0.85, 0.22),
}
"""By format, as it was designed: relative root mean square error on Gaussian and on Student-t(4) values, and bits per
value: the entropy of its codes on Gaussian values where it has one, else its size."""


def gaussian(elements: int) -> Tensor:
    """fp32[elements] standard normal values, the same at every call."""
    return torch.from_numpy(np.random.default_rng(1).standard_normal(elements, dtype=np.float32))


def student_t4(elements: int) -> Tensor:
    """fp32[elements] values of Student's t with 4 degrees of freedom, the same at every call: heavy tails."""
    return torch.from_numpy(np.random.default_rng(2).standard_t(4, elements).astype(np.float32))


def relative_error(coder: Codec, source: Tensor) -> tuple[float, int]:
    """Root mean square error over root mean square of fp32[n] `source` after there and back, and the encoded bytes."""
    out = torch.empty(coder.max_bytes(source.numel()), dtype=torch.uint8)
    size_bytes = coder.encode(source, out)
    decoded = torch.empty_like(source)
    coder.decode(out[:size_bytes], decoded)
    return float((decoded - source).norm() / source.norm()), size_bytes


def measure(names: Sequence[str], elements: int, seconds: float) -> list[dict[str, Any]]:
    """Measure codecs on chunks of `elements` (>= 1) values, for about `seconds` each.

    Returns:
        A row per codec: `codec`; `error_gaussian`, `error_t4` (relative); `raw_bits` per value as the format alone is
        sized; `bits` per Gaussian value on the wire; `encode`, `decode`, `accumulate` in GB/s of fp32 on one thread
        (CPU time of the best of several repeats); `expected`: error Gaussian, error t4, bits.

    Raises:
        ConfigError: an unknown codec.
    """
    coders = [codec(name) for name in names]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(coder, elements, seconds) for coder in coders]
    finally:
        torch.set_num_threads(threads)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `measure` for a terminal, with what was expected in brackets."""
    shown = Table(title="Codecs: measured (expected)", caption="GB/s of fp32 values on one thread; error is relative")
    shown.add_column("codec")
    for heading in ("error Gaussian", "error t(4)", "raw bits", "bits", "encode", "decode", "accumulate"):
        shown.add_column(heading, justify="right")
    for row in rows:
        gaussian_error, t4_error, bits = row["expected"]
        shown.add_row(
            row["codec"],
            f"{row['error_gaussian']:.2%} ({gaussian_error:.2%})",
            f"{row['error_t4']:.2%} ({t4_error:.2%})",
            f"{row['raw_bits']:.3g}",
            f"{row['bits']:.3g} ({bits:.3g})",
            *(f"{row[operation]:.2f}" for operation in ("encode", "decode", "accumulate")),
        )
    return shown


def _row(coder: Codec, elements: int, seconds: float) -> dict[str, Any]:
    source = gaussian(elements)
    error_t4, _ = relative_error(coder, student_t4(elements))
    error_gaussian, size_bytes = relative_error(coder, source)
    name = coder.name.partition("+")[0]
    out = torch.empty(coder.max_bytes(elements), dtype=torch.uint8)
    encoded = out[: coder.encode(source, out)].clone()
    values = torch.zeros(elements)
    operations: dict[str, Callable[[], object]] = {
        "encode": lambda: coder.encode(source, out),
        "decode": lambda: coder.decode(encoded, values),
        "accumulate": lambda: coder.accumulate(encoded, 0.5, values),
    }
    return {
        "codec": coder.name,
        "error_gaussian": error_gaussian,
        "error_t4": error_t4,
        "raw_bits": 8 * codec(name).max_bytes(elements) / elements,
        "bits": 8 * size_bytes / elements,
        **{key: 4 * elements / best_s(work, seconds / 3) / 1e9 for key, work in operations.items()},
        "expected": EXPECTED[name],
    }


def best_s(work: Callable[[], object], seconds: float) -> float:
    """CPU seconds of one call: the least mean of batches, at least three of them, until about `seconds` have passed."""
    end = time.perf_counter() + seconds
    work()
    started = time.thread_time()
    work()
    batch = max(1, int(0.002 / max(time.thread_time() - started, 1e-6)))
    best, done = float("inf"), 0
    while done < 3 or time.perf_counter() < end:
        started = time.thread_time()
        for _ in range(batch):
            work()
        best = min(best, (time.thread_time() - started) / batch)
        done += 1
    return max(best, 1e-9)
