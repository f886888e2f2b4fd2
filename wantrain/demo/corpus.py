"""The demo's text: the source of the installed Python standard library as bytes, split by files, no download needed."""

import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wantrain.errors import ConfigError

HELD_OUT_SHARE = 0.05
LEAST_SHARD_BYTES = 50_000
SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
    | {"encodings", "pydoc_data"}  # tables and generated text
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Bytes as uint8 vectors: one shard per peer and a held-out part; no file is in two of them."""

    shards: tuple[Tensor, ...]
    held_out: Tensor
    files: tuple[tuple[str, ...], ...]
    """File names of each shard, and of the held-out part last."""

    def shard(self, peer: int) -> Tensor:
        """The training bytes of one peer, uint8 [n].

        Raises:
            ConfigError: the corpus was not split for that many peers.
        """
        if not 0 <= peer < len(self.shards):
            raise ConfigError(
                f"there is no shard {peer}: the corpus is split into shards 0 to {len(self.shards) - 1}",
                hint="load the corpus with more peers",
            )
        return self.shards[peer]

    def batches(self, peer: int, *, batch: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random windows of a peer's shard, without end; the same arguments give the same windows.

        Yields:
            (tokens, targets), both int64 [batch, context]; targets are one byte ahead.
        """
        yield from _windows(self.shard(peer), batch, context, seed * 1_000_003 + peer)

    def held_out_batch(self, *, batch: int, context: int) -> tuple[Tensor, Tensor]:
        """The fixed windows on which every held-out loss is measured, int64 [batch, context] twice."""
        return next(_windows(self.held_out, batch, context, 0))


def _windows(data: Tensor, batch: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    span = torch.arange(context + 1)
    while True:
        starts = torch.randint(len(data) - context, (batch, 1), generator=generator)
        window = data[starts + span].long()
        yield window[:, :-1], window[:, 1:]


def load(peers: int, seed: int, root: Path | None = None) -> Corpus:
    """Read and split the corpus; the same Python installation, peers and seed give the same split.

    Args:
        peers: number of shards, at least 1.
        seed: decides which file goes where.
        root: folder to read; by default the standard library of this Python.

    Raises:
        ConfigError: too little source text for that many peers.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if SKIPPED.isdisjoint(path.relative_to(root).parts)
    )
    contents = {name: (root / name).read_bytes() for name in names}
    total = sum(map(len, contents.values()))
    if total < LEAST_SHARD_BYTES * (peers + 1):
        raise ConfigError(
            f"{root} holds {total} bytes of Python source; {peers} peers need {LEAST_SHARD_BYTES * (peers + 1)}",
            hint="use fewer peers, or a Python with its standard library installed as .py files",
        )
    random.Random(seed).shuffle(names)
    parts: list[list[str]] = [[] for _ in range(peers + 1)]
    sizes = [0] * (peers + 1)
    held_out_bytes = HELD_OUT_SHARE * total
    for name in names:
        size = len(contents[name])
        part = peers if sizes[peers] + size <= held_out_bytes else min(range(peers), key=sizes.__getitem__)
        parts[part].append(name)
        sizes[part] += size
    tensors = [_tensor(b"\n".join(contents[name] for name in part)) for part in parts]
    return Corpus(tuple(tensors[:-1]), tensors[-1], tuple(tuple(part) for part in parts))


def _tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
