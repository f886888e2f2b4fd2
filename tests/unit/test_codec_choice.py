"""The codec of a sync that may choose: as many bits as the link hides, and no flicker."""

import random
from collections.abc import Callable

import pytest

from wantrain.optimizers.stream import Stream
from wantrain.peers.codec_choice import (
    CALM_PLANS,
    COUNTED,
    USELESS_PLANS,
    CodecChoice,
    codecs_of,
    coding_s,
    slack_s,
)
from wantrain.transport.codec.names import AUTO_CODECS, bits, format_of

INT8, RMS, EF = AUTO_CODECS
WIRE = [bits(codec) + bits("int8") for codec in AUTO_CODECS]


def times(int8_s: float) -> list[float]:
    """Of a link where the bytes are all that takes time."""
    return [int8_s * up / WIRE[0] for up in WIRE]


def chosen(int8_s: float, slack: float = 1.0) -> str:
    return CodecChoice().choose(times(int8_s), slack)[0]


def test_the_choice_is_between_8_bits_fewer_and_fewest_with_error_feedback() -> None:
    assert [round(bits(codec), 1) for codec in AUTO_CODECS] == [8.1, 3.7, 2.6]
    assert [format_of(codec).error_feedback for codec in AUTO_CODECS] == [False, False, True]


@pytest.mark.parametrize(
    ("int8_s", "codec"),
    [(0.01, INT8), (1.0, INT8), (1.01, RMS), (1.37, RMS), (1.4, EF), (1.5, EF), (100.0, EF)],
)
def test_as_many_bits_as_are_over_in_the_slack(int8_s: float, codec: str) -> None:
    assert chosen(int8_s) == codec


def test_the_slack_is_the_delay_or_a_tenth_of_the_steps_between_syncs() -> None:
    assert slack_s(Stream("param", every=100, delay=30), 0.5) == 15.0
    assert slack_s(Stream("param", every=100), 0.5) == 5.0
    assert slack_s(Stream("param", every=100, delay=1), 0.5) == 5.0
    assert slack_s(Stream("grad", state="grad", every=1), 0.5) == pytest.approx(0.05)


@pytest.mark.parametrize(("times_s", "slack"), [([0.0, 0.0, 0.0], 1.0), (times(9.0), 0.0)])
def test_without_measurements_it_stays_as_it_is_and_begins_with_8_bits(times_s: list[float], slack: float) -> None:
    choice = CodecChoice()
    assert choice.choose(times_s, slack)[0] == INT8
    choice.choose(times(9.0), 1.0)
    assert choice.choose(times_s, slack)[0] == EF


def test_where_round_trips_take_the_time_fewer_bits_are_not_used() -> None:
    assert CodecChoice().choose([1.2, 1.15, 1.1], 1.0) == (
        INT8,
        "int8 as the slack is 1 s and fewer bits save too little",
    )
    assert CodecChoice().choose([1.2, 1.15, 1.07], 1.0)[0] == EF


def test_fewer_bits_come_at_once_and_more_only_after_a_while_with_room_to_spare() -> None:
    choice = CodecChoice()
    assert choice.choose(times(9.0), 1.0)[0] == EF
    assert [choice.choose(times(0.65), 1.0)[0] for _ in range(CALM_PLANS)] == [EF] * (CALM_PLANS - 1) + [INT8]
    assert choice.choose(times(9.0), 1.0)[0] == EF
    for _ in range(3 * CALM_PLANS):
        assert choice.choose(times(0.7), 1.0)[0] != INT8, "it fits, but noise could undo it"


def test_one_slow_moment_begins_the_wait_anew() -> None:
    choice = CodecChoice()
    for int8_s in (9.0, *[0.5] * (CALM_PLANS - 1), 9.0, *[0.5] * (CALM_PLANS - 1)):
        assert choice.choose(times(int8_s), 1.0)[0] == EF


@pytest.mark.parametrize("int8_s", [0.7, 0.9, 1.0, 1.1, 1.4, 1.5])
def test_noise_within_a_fifth_changes_the_codec_a_few_times_at_most(int8_s: float) -> None:
    """Wherever it stands, also right at a limit."""
    rng, choice = random.Random(1), CodecChoice()
    codecs = [choice.choose(times(int8_s * rng.uniform(0.9, 1.1)), 1.0)[0] for _ in range(1000)]
    assert sum(a != b for a, b in zip(codecs, codecs[1:], strict=False)) <= 2


def test_the_reason_names_times_and_slack() -> None:
    assert CodecChoice().choose(times(0.5), 2.0)[1] == "int8 is over in 0.5 s of a slack of 2 s"
    assert CodecChoice().choose(times(2.4), 2.0)[1] == "rms0.35+zstd is over in 1.7 s of a slack of 2 s, int8 in 2.4 s"
    assert CodecChoice().choose(times(9.0), 2.0)[1] == "rms0.75+huffman as the slack is 2 s and int8 would take 9 s"


def exchanged(choice: CodecChoice, takes: Callable[[str], float], plans: int, slack: float = 1.0) -> list[str]:
    """Codecs of so many exchanges that are predicted to take 0.9 s in int8 and take what `takes` says."""
    codecs = []
    for _ in range(plans):
        codec = choice.choose(times(0.9), slack)[0]
        choice.took(codec, times(0.9)[tuple(AUTO_CODECS).index(codec)], takes(codec))
        codecs.append(codec)
    return codecs


def test_what_exchanges_took_counts_more_than_what_was_predicted() -> None:
    """A rate that is three times too high."""
    choice, truth = CodecChoice(), dict(zip(AUTO_CODECS, times(2.7), strict=True))
    assert exchanged(choice, truth.__getitem__, 5) == [INT8] * COUNTED + [EF] * 2
    assert exchanged(choice, truth.__getitem__, 50) == [EF] * 50
    truth = dict(zip(AUTO_CODECS, times(0.3), strict=True))
    assert exchanged(choice, truth.__getitem__, 20)[-1] == INT8, "the link is fast again"


def test_a_busy_machine_does_not_keep_bits_away() -> None:
    """0.3 s of every exchange have nothing to do with bytes."""
    choice = CodecChoice()
    assert exchanged(choice, dict(zip(AUTO_CODECS, times(2.7), strict=True)).__getitem__, 9)[-1] == EF
    busy = {codec: 0.3 + time_s for codec, time_s in zip(AUTO_CODECS, times(0.1), strict=True)}
    codecs = []
    for _ in range(20):
        codecs.append(choice.choose(times(0.1), 1.0)[0])
        choice.took(codecs[-1], times(0.1)[tuple(AUTO_CODECS).index(codecs[-1])], busy[codecs[-1]])
    assert codecs[-1] == INT8


def test_one_exchange_that_was_held_up_changes_nothing() -> None:
    choice = CodecChoice()
    for takes_s in (0.9, 0.9, 0.9, 60.0, 0.9):
        assert exchanged(choice, lambda _, takes_s=takes_s: takes_s, 1) == [INT8]


def test_fewer_bits_that_have_saved_nothing_are_given_up_for_long() -> None:
    """As where processors are what takes the time."""
    choice = CodecChoice()
    codecs = exchanged(choice, lambda _: 3.0, USELESS_PLANS)
    assert codecs == [INT8] * COUNTED + [EF] * COUNTED + [INT8] * (USELESS_PLANS - 2 * COUNTED)


def test_on_fast_links_the_work_of_the_coder_is_what_takes_time() -> None:
    assert coding_s(INT8, 10**9) < coding_s(RMS, 10**9) < coding_s(EF, 10**9)
    fast = [coding_s(codec, 10**9) for codec in AUTO_CODECS]
    assert CodecChoice().choose(fast, 1.0)[0] == INT8


def test_a_peer_needs_all_codecs_that_may_be_chosen() -> None:
    assert codecs_of([Stream("param", codec="auto", down="bf16")]) == {*AUTO_CODECS, "bf16"}
    assert codecs_of([Stream("param", codec="int4", down="int8"), Stream("b", codec="fp32")]) == {
        "int4",
        "int8",
        "fp32",
    }
