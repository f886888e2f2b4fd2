"""Rounds of uneven length through the training API: what the hooks see, and what a script that ends early is told."""

import logging
from collections.abc import Callable

import pytest
import torch

from tests.unit.test_session import Daemon, Trainer, joined, serve
from wantrain.optimizers.stream import Stream
from wantrain.peers.messages import Contribute

__all__ = ["serve"]

QSR = Stream(
    "param",
    every=2,
    merge="mean",
    codec="fp32",
    schedule="qsr",
    schedule_options=(("cap", 100.0), ("growth", 2.0), ("warmup", 0.0)),
)


def test_the_learning_rate_that_counts_is_the_largest_of_the_optimizers_groups(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(QSR), Trainer()
    groups = [{"params": [trainer.model.first], "lr": 0.5}, {"params": [trainer.model.second], "lr": 1.0}]
    trainer.optimizer = torch.optim.SGD(groups)
    with joined(daemon, trainer):
        for _ in range(4):
            trainer.step()
        trainer.optimizer.param_groups[1]["lr"] = 0.25
        for _ in range(16):
            trainer.step()
    assert [(record.step, record.steps) for record in daemon.of(Contribute)] == [(4, 4), (20, 16)]


@pytest.mark.parametrize(("steps", "warned"), [(1, True), (2, False), (0, False)])
def test_a_script_that_ends_before_its_first_sync_is_told_what_to_do(
    serve: Callable[..., Daemon], caplog: pytest.LogCaptureFixture, steps: int, warned: bool
) -> None:
    daemon, trainer = serve(Stream("param", every=2, merge="mean", codec="fp32")), Trainer()
    with caplog.at_level(logging.WARNING, logger="wantrain"), joined(daemon, trainer):
        for _ in range(steps):
            trainer.step()
    text = "training ends after 1 inner steps, and stream param is due after 2"
    assert (text in caplog.text) == warned
