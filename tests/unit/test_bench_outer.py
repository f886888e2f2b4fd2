"""The benchmarks of a sync's host work and of the trainer's own cost: rows and tables hold what they say."""

import io

import pytest
import torch
from rich.console import Console

from wantrain.bench import outer, trainer
from wantrain.errors import ConfigError


def shown(table: object) -> str:
    text = io.StringIO()
    Console(width=140, file=text).print(table)
    return text.getvalue()


def test_it_is_said_in_what_pieces_a_fragment_is_worked_on() -> None:
    assert outer.pieces(10**6).startswith("32 chunks of 31,744 values")
    assert outer.pieces(10).startswith("1 chunk of 10 values")


def test_a_row_per_rule_and_two_per_codec() -> None:
    threads = torch.get_num_threads()
    rows = outer.measure(["mean", "adam"], ["fp32", "int4"], 20_000, 0.01)
    assert torch.get_num_threads() == threads
    assert [(row["what"], row["name"], row["vectors"]) for row in rows] == [
        ("outer step", "mean", 0),
        ("outer step", "adam", 2),
        ("encode", "fp32", 0),
        ("decode", "fp32", 0),
        ("encode", "int4", 0),
        ("decode", "int4", 0),
    ]
    for row in rows:
        assert row["gb_per_s"] == pytest.approx(4 * 20_000 / (row["ms"] * 1e6))
    assert "A fragment of 20,000 values" in shown(outer.table(rows, 20_000))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="adamw"):
        outer.measure(["adamw"], [], 100, 0.01)
    with pytest.raises(ConfigError, match="int9"):
        outer.measure([], ["int9"], 100, 0.01)


def test_the_trainers_own_cost_is_counted_by_step_and_by_round() -> None:
    said: list[str] = []
    row = trainer.measure(2, 2, said.append)
    assert said == ["1,053,216 parameters, 2 rounds of 2 steps …"]
    assert (row["every"], row["rounds"]) == (2, 2)
    assert 0 < row["hooks_ms"] <= row["round_ms"] < 1e6
    assert row["share"] == pytest.approx(row["hooks_ms"] / row["step_ms"])
    assert row["alone_ms"] > 0
    assert isinstance(row["stall_ms"], float)
    assert row["staged_ms"] > 0
    assert row["waited_ms"] > 0
    assert (row["device"], row["delay"], row["device_bytes"]) == ("cpu", 0, 0)
    assert "1,053,216 parameters, a sync every 2 steps" in shown(trainer.table(row))


def test_the_trainers_own_cost_is_measured_on_a_device_that_is_there() -> None:
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        trainer.measure(2, 2, lambda _: None, device="tpu")
    with pytest.raises(ConfigError, match="delay is 3, allowed is 0 to 2"):
        trainer.measure(2, 2, lambda _: None, delay=3)
