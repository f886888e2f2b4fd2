"""Robust averages in engine and run spec: what is encoded is the rule's average, and where it may be used."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.test_engine import written
from wantrain.config import RunSpec
from wantrain.errors import CodecError, ConfigError, ProtocolBug
from wantrain.optimizers.average import AVERAGES, CLIPS, average
from wantrain.optimizers.norm_clip import clip_to_median
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.messages import TensorSpec
from wantrain.transport.codec import as_tensor, codec
from wantrain.transport.collective import Payload
from wantrain.transport.partition import chunk_bounds

torch.set_num_threads(1)

SIZE = 2 * 16384 + 101
BOUNDS = chunk_bounds(SIZE)
RUN = f'[run]\nid = "00112233445566ff"\nowner = "{"ab" * 32}"\n'

Make = Callable[[Stream], Engine]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes an engine with an open segment."""

    def engine(stream: Stream) -> Engine:
        made = Engine((TensorSpec("w", (SIZE,), "float32"),), (stream,))
        made.open_segment(tmp_path / "segment")
        return made

    return engine


def gaussian(seed: int) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def read(name: str, payload: Payload, size: int) -> Tensor:
    out = torch.empty(size)
    codec(name).decode(as_tensor(payload), out)
    return out


@pytest.mark.parametrize("name", ["fp32", "int8"])
@pytest.mark.parametrize("rule", AVERAGES)
@pytest.mark.parametrize("clip", CLIPS)
def test_a_chunk_of_the_update_is_the_rules_average_of_what_was_decoded(
    make: Make, name: str, rule: str, clip: str
) -> None:
    """The own contribution goes in as it is, those of others as they were encoded; weights change nothing."""
    stream = Stream("param", average=rule, clip=clip, trim=0.3, codec=name, down="fp32", topology="direct")
    if (rule, clip) == ("mean", "none"):
        return  # the plain sum, tested with the engine
    engine = make(stream)
    assert engine.segment is not None
    engine.segment.out("param").copy_(-gaussian(0))
    engine.stage("param")
    engine.use_stage("param")
    others = [written(name, 5.0 * gaussian(1)), written(name, gaussian(2)), written(name, -1e6 * gaussian(3))]
    before = [bytes(chunk) for chunks in others for chunk in chunks]
    for k, (begin, end) in enumerate(BOUNDS):
        inputs = [(7.0, others[0][k]), (1.0, None), (1.0, others[1][k]), (1e9, others[2][k])]
        assert all(engine.check("param", k, p, part=True) is None for _, p in inputs if p is not None)
        rows = torch.stack([read(name, chunks[k], end - begin) for chunks in others])
        rows = torch.stack([rows[0], gaussian(0)[begin:end], rows[1], rows[2]])
        if clip == "median":
            clip_to_median(rows)
        wanted = torch.empty(end - begin)
        average(rule).combine(rows, 0.3, wanted)
        result = engine.reduce("param", k, inputs, 99.0, True)
        assert torch.equal(read("fp32", result, end - begin), wanted)
    assert [bytes(chunk) for chunks in others for chunk in chunks] == before


def test_memory_for_all_contributions_is_made_once_and_counted(make: Make) -> None:
    engine = make(Stream("param", average="median", codec="int8"))
    chunks = [written("int8", gaussian(k))[0] for k in range(4)]
    before = engine.resident_bytes
    for _ in range(3):
        engine.reduce("param", 0, [(1.0, chunk) for chunk in chunks], 4.0, True)
    assert engine.resident_bytes - before == 4 * 4 * (BOUNDS[0][1] - BOUNDS[0][0])


def test_partial_sums_do_not_go_with_a_rule_that_sees_all(make: Make) -> None:
    engine = make(Stream("param", average="median", codec="fp32"))
    with pytest.raises(ProtocolBug, match="has to see all"):
        engine.reduce("param", 0, [(1.0, written("fp32", gaussian(0))[0])], 1.0, False)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1e10, 1.0, 1.0)])
def test_who_makes_a_sum_overflow_is_found_from_the_bytes(make: Make, weights: tuple[float, ...]) -> None:
    engine = make(Stream("param", codec="fp32"))
    small, huge = written("fp32", gaussian(0))[0], written("fp32", torch.full((SIZE,), -3e38))[0]
    inputs = list(zip(weights, [small, huge, huge], strict=True))
    with pytest.raises(CodecError):
        engine.reduce("param", 0, inputs, sum(weights), True)
    assert engine.longest("param", 0, inputs) == 1
    assert engine.longest("param", 0, [(1.0, small), (1e39, small)]) == 1


def test_against_huge_values_the_median_stays_finite(make: Make) -> None:
    engine = make(Stream("param", average="median", codec="fp32"))
    rows = [gaussian(0), gaussian(1), gaussian(2), torch.full((SIZE,), 3e38), torch.full((SIZE,), 3e38)]
    result = engine.reduce("param", 0, [(1.0, written("fp32", row)[0]) for row in rows], 5.0, True)
    assert math.isfinite(float(read("fp32", result, BOUNDS[0][1]).abs().max()))


# ---- in the run spec


def test_by_default_contributions_are_simply_summed() -> None:
    (stream,) = RunSpec.parse(RUN).streams
    assert (stream.average, stream.clip, stream.topology) == ("mean", "none", "auto")


@pytest.mark.parametrize("section", ['merge = "median"', 'merge = "trimmed-mean"\ntrim = 0.3', 'clip = "median"'])
@pytest.mark.parametrize("method", ["diloco", "ddp", "local-sgd"])
def test_a_robust_average_goes_directly_in_every_stream(section: str, method: str) -> None:
    spec = RunSpec.parse(RUN + f'[method]\nname = "{method}"\n[robust]\n{section}\n')
    assert {stream.topology for stream in spec.streams} == {"direct"}
    assert RunSpec.parse(spec.to_toml()).digest == spec.digest != RunSpec.parse(RUN).digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[wire]\ntopology = "ring"\n[robust]\nmerge = "median"', "in a ring nobody sees more than sums"),
        ('[wire]\ntopology = "ring"\n[robust]\nclip = "median"', "in a ring nobody sees more than sums"),
        ('[method]\nweight = "tokens"\n[robust]\nmerge = "median"', "weights are what peers claim"),
        ('[robust]\nmerge = "krum"', "allowed is 'mean' or 'trimmed-mean' or 'median'"),
        ("[robust]\ntrim = 0.5", "trim is 0.5, allowed is a number at least 0, below 0.5"),
        ('[robust]\nclip = "mean"', "allowed is 'none' or 'median'"),
    ],
)
def test_what_does_not_fit_is_refused_with_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"\[robust\]") as caught:
        RunSpec.parse(f"{RUN}{text}\n")
    assert words in caught.value.message
    assert caught.value.hint
