"""torch.distributed with gloo as a contestant: what people use where there is no NCCL."""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it has no stub

from wantrain.bench import inputs
from wantrain.bench.worker import Json, Setup, wait_until
from wantrain.interfaces import interface_of


class Gloo:
    """All-reduce (sum) of fp32, in place; see `Contestant`. The division that makes it a mean is not timed."""

    serves = False

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self._setup = setup
        self._values = torch.zeros(setup.elements)
        self._store: TCPStore | None = None
        self._first: int | None = None
        os.environ["GLOO_SOCKET_IFNAME"] = interface_of(setup.host)

    def listen(self) -> Json:
        if self._setup.index:
            return {}
        limit = timedelta(seconds=self._setup.timeout_s)
        self._store = TCPStore(self._setup.host, 0, is_master=True, wait_for_workers=False, timeout=limit)
        return {"store": [self._setup.host, self._store.port]}

    def meet(self, roster: list[Json]) -> None:
        limit = timedelta(seconds=self._setup.timeout_s)
        host, port = roster[0]["store"]
        store = self._store or TCPStore(host, port, is_master=False, timeout=limit)
        dist.init_process_group(
            "gloo", store=store, rank=self._setup.index, world_size=self._setup.peers, timeout=limit
        )

    def prepare(self, number: int, variant: str, watch: bool) -> None:
        inputs.fill(self._values, self._setup.index)

    def run(self, at: float) -> Json:
        wait_until(at)
        dist.all_reduce(self._values)
        return {"end": time.monotonic()}

    def wait(self, seconds: float) -> None:
        pass

    def verify(self, full: bool) -> Json:
        if not full:
            return {}
        error, worst = inputs.distance(self._values.div_(self._setup.peers), list(range(self._setup.peers)))
        return {"error": error, "worst_error": worst}

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
