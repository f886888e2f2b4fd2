"""Many peers in one process: try a method on your own model, without sockets, on virtual time, always with one result.

    import wantrain.sim
    result = wantrain.sim.train(worker, peers=4, steps=600, method="diloco", options={"every": 50})

`worker(i)` makes model, optimizer and one training step of worker i. What runs is what runs between machines:
coordinator, peers, codecs, and the trainers' side of `wantrain.join`.
"""

from wantrain.sim.churn import Join, Kill, Leave, Pace, Restart
from wantrain.sim.result import Result, Round, WorkerResult
from wantrain.sim.run import train
from wantrain.sim.trainer import Worker

__all__ = ["Join", "Kill", "Leave", "Pace", "Restart", "Result", "Round", "Worker", "WorkerResult", "train"]
