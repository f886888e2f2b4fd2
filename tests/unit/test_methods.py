"""Methods: the streams that each makes of its options, and the options that are refused."""

import inspect
from dataclasses import fields
from typing import Any

import pytest

from wantrain.errors import ConfigError
from wantrain.optimizers.merge import MERGES
from wantrain.optimizers.method import METHODS, build
from wantrain.optimizers.stream import Stream, Wire


def test_diloco_is_one_nesterov_stream() -> None:
    assert build("diloco", {}, Wire("int8")) == (
        Stream(
            name="param",
            state="param",
            every=100,
            merge="nesterov",
            merge_options=(("lr", 0.7), ("momentum", 0.9)),
            codec="int8",
            late="rebase",
            weight="equal",
        ),
    )


def test_diloco_takes_over_its_options() -> None:
    options = {
        "every": 30, "delay": 30, "outer_lr": 1, "momentum": 0, "nesterov": False, "late": "adopt", "weight": "tokens",
    }  # fmt: skip
    (stream,) = build("diloco", options, Wire("bf16"))
    assert (stream.every, stream.merge, stream.late, stream.weight) == (30, "heavy-ball", "adopt", "tokens")
    assert stream.delay == 30
    assert stream.merge_options == (("lr", 1.0), ("momentum", 0.0))
    assert stream.codec == "bf16"


def test_local_sgd_is_one_mean_stream() -> None:
    (stream,) = build("local-sgd", {"every": 7}, Wire("fp32"))
    assert (stream.name, stream.every, stream.merge, stream.merge_options) == ("param", 7, "mean", (("lr", 1.0),))


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad"])
def test_fedopt_is_one_stream_of_its_rule(rule: str) -> None:
    (stream,) = build(f"fed{rule}", {"every": 7, "outer_lr": 0.1, "scale": 0.5}, Wire("fp32"))
    assert (stream.name, stream.every, stream.merge) == ("param", 7, rule)
    expected = {"lr": 0.1, "beta1": 0.9, "scale": 0.5} | ({} if rule == "adagrad" else {"beta2": 0.99})
    assert dict(stream.merge_options) == expected
    assert set(expected) == set(MERGES[rule].options)


def test_diloco_with_momentum_at_every_fourth_sync_is_delayed_nesterov() -> None:
    (stream,) = build("diloco", {"momentum_every": 4, "momentum_share": 0.25}, Wire("fp32"))
    assert stream.merge == "delayed-nesterov"
    assert dict(stream.merge_options) == {"lr": 0.7, "momentum": 0.9, "share": 0.25, "wait": 4.0}


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("diloco", {"momentum_every": 4, "momentum_share": 0.3}, ["0.3", "1 / 4"]),
        ("diloco", {"momentum_share": 0.3}, ["0.3", "0 if that is 1"]),
        ("diloco", {"momentum_every": 4, "nesterov": False}, ["momentum_every is 4", "allowed: 1"]),
        ("diloco", {"total": 99}, ["every is 100", "total, which is 99"]),
        ("local-sgd", {"growth": 0.1}, ["growth is 0.1", "fixed"]),
        ("fedadam", {"schedule": "qsr", "round_s": 5.0}, ["round_s is 5.0", "qsr"]),
        ("diloco", {"schedule": "dynamic"}, ["weight is 'equal'", "'tokens'"]),
        ("fedadagrad", {"beta2": 0.5}, ["beta2"]),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(
    method: str, options: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(method, options, Wire("int8"))
    for word in (method, *words):
        assert word in caught.value.message
    assert caught.value.hint


def test_a_schedule_and_its_options_are_in_the_stream() -> None:
    (stream,) = build("diloco", {"every": 4, "schedule": "qsr", "growth": 0.02, "total": 1000}, Wire("fp32"))
    assert (stream.every, stream.schedule, stream.uneven) == (4, "qsr", True)
    assert dict(stream.schedule_options) == {"cap": 1000.0, "growth": 0.02, "total": 1000.0, "warmup": 0.0}
    (plain,) = build("diloco", {}, Wire("fp32"))
    assert (plain.schedule, plain.schedule_options, plain.uneven) == ("fixed", (), False)
    (cut,) = build("diloco", {"total": 250}, Wire("fp32"))
    assert cut.uneven


def test_ddp_averages_gradients_and_now_and_then_the_weights() -> None:
    grad, param = build("ddp", {"resync": 20, "weight": "tokens"}, Wire("int8"))
    assert (grad.name, grad.state, grad.every, grad.merge) == ("grad", "grad", 1, "mean")
    assert (param.name, param.state, param.every, param.merge) == ("param", "param", 20, "mean")
    assert {stream.late for stream in (grad, param)} == {"adopt"}
    assert {stream.weight for stream in (grad, param)} == {"tokens"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_builds_streams_that_the_merge_rules_take(name: str) -> None:
    streams = build(name, {}, Wire(METHODS[name].codec))
    assert any(stream.state == "param" for stream in streams), "a newcomer starts from a param stream"
    assert len({stream.name for stream in streams}) == len(streams)
    for stream in streams:
        assert {key for key, _ in stream.merge_options} <= set(MERGES[stream.merge].options)
        assert list(stream.merge_options) == sorted(stream.merge_options)
        assert {stream: 1}[stream] == 1
        assert stream.codec in (METHODS[name].codec, "bf16")  # moments have values of too many magnitudes for int8


@pytest.mark.parametrize("kind", [method.options for method in METHODS.values()], ids=METHODS)
def test_every_option_has_a_default_and_a_docstring(kind: type[Any]) -> None:
    source = "\n".join(inspect.getsource(base) for base in kind.__mro__[:-1])
    for field in fields(kind):
        lines = [line.strip() for line in source.splitlines()]
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{field.name}:"))
        assert lines[at + 1].startswith('"""'), field.name
    assert kind() is not None


@pytest.mark.parametrize(
    ("method", "option", "value", "allowed"),
    [
        ("diloco", "every", 0, "a whole number >= 1"),
        ("diloco", "every", -3, ">= 1"),
        ("diloco", "every", 2.0, "a whole number"),
        ("diloco", "every", "100", "a whole number"),
        ("diloco", "every", True, "a whole number"),
        ("diloco", "every", 10**400, "<= 1000000000"),
        ("diloco", "delay", -1, "a whole number >= 0"),
        ("diloco", "delay", 101, "<= every, which is 100"),
        ("diloco", "outer_lr", 0, "a number > 0"),
        ("diloco", "outer_lr", float("nan"), "a number > 0"),
        ("diloco", "outer_lr", float("inf"), "<= 1000"),
        ("diloco", "outer_lr", True, "a number"),
        ("diloco", "momentum", 1.0, ">= 0 and < 1"),
        ("diloco", "momentum", -0.1, ">= 0 and < 1"),
        ("diloco", "momentum", None, "a number"),
        ("diloco", "nesterov", 1, "true or false"),
        ("diloco", "late", "wait", "rebase, adopt"),
        ("diloco", "weight", ["equal"], "equal, tokens"),
        ("local-sgd", "outer_lr", -1.0, "> 0"),
        ("local-sgd", "late", 0, "rebase, adopt"),
        ("ddp", "resync", 0, ">= 1"),
        ("ddp", "moments", 1, "true or false"),
        ("streaming-diloco", "fragments", 201, "<= 200"),
        ("streaming-diloco", "alpha", 1.0, ">= 0 and < 1"),
        ("streaming-diloco", "split", "even", "strided, sequential, balanced"),
        ("local-adam", "every", 0, ">= 1"),
        ("des-loc", "every_exp_avg", -1, ">= 0"),
        ("ddp", "weight", "token", "equal, tokens"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(method: str, option: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(method, {option: value}, Wire("int8"))
    for part in (method, option, repr(value), allowed):
        assert part in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("method", "options", "wrong", "near"),
    [
        ("dilocco", {}, "dilocco", "diloco"),
        ("local_sgd", {}, "local_sgd", "local-sgd"),
        ("diloco", {"outer_rl": 1.0}, "outer_rl", "outer_lr"),
        ("diloco", {"late": "rebas"}, "rebas", "rebase"),
        ("ddp", {"reysnc": 3}, "reysnc", "resync"),
    ],
)
def test_a_name_that_is_not_known_gets_the_nearest_one(
    method: str, options: dict[str, object], wrong: str, near: str
) -> None:
    with pytest.raises(ConfigError, match=wrong) as caught:
        build(method, options, Wire("int8"))
    assert f"did you mean {near!r}?" in caught.value.hint


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        build("zzz", {}, Wire("int8"))
    assert caught.value.hint == f"known: {', '.join(METHODS)}"
