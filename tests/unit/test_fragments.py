"""Fragments: which tensors each rule takes, that together they are the whole model, and what cannot be cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wantrain.errors import ConfigError
from wantrain.optimizers.fragment import blocks, members
from wantrain.optimizers.stream import Stream
from wantrain.peers.layout import check_streams, stream_elements, stream_tensors
from wantrain.peers.messages import TensorSpec


def block(name: str, width: int = 4) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.norm.weight", (width,)), (f"{name}.up.weight", (width, 2 * width))]


EMBEDDING, HEAD = ("token.weight", (100, 4)), ("head.weight", (100, 4))
GPT = (EMBEDDING, *(tensor for k in range(6) for tensor in block(f"layers.{k}")), HEAD, ("norm.weight", (4,)))


def taken(fragment: str, tensors: tuple[tuple[str, tuple[int, ...]], ...] = GPT) -> list[str]:
    return [tensors[position][0] for position in members(fragment, tensors)]


def layers(fragment: str) -> list[int]:
    return [int(name.split(".")[1]) for name in taken(fragment) if name.endswith("up.weight")]


def test_strided_takes_every_nth_block_and_sequential_a_run_of_them() -> None:
    assert [layers(f"strided:{k}/4") for k in range(4)] == [[0, 4], [1, 5], [2], [3]]
    assert [layers(f"sequential:{k}/4") for k in range(4)] == [[0, 1], [2], [3, 4], [5]]
    assert taken("rest") == ["token.weight", "head.weight", "norm.weight"]
    assert taken("all") == [name for name, _ in GPT]


def test_balanced_fragments_are_about_as_large() -> None:
    sizes = {name: shape[0] * (shape[1] if shape[1:] else 1) for name, shape in GPT}
    loads = [sum(sizes[name] for name in taken(f"balanced:{k}/3")) for k in range(3)]
    assert sum(loads) == sum(sizes.values())
    assert max(loads) - min(loads) <= 400  # no more than the largest tensor


@pytest.mark.parametrize("names", [["a", "b", "rest"], ["a", "b"]])
@given(count=st.integers(2, 9), width=st.integers(1, 5), rest=st.integers(1, 3))
def test_fragments_are_the_whole_model_without_overlap(names: list[str], count: int, width: int, rest: int) -> None:
    tensors = [tensor for k in range(count) for tensor in block(f"h.{k}", width)]
    model = tuple(
        TensorSpec(name, shape, "float32") for name, shape in [*tensors, *[(f"x{k}", (3,)) for k in range(rest)]]
    )
    rules = ["strided", "sequential"] if "rest" in names else ["balanced"]
    for rule in rules:
        cuts = [*(f"{rule}:{k}/2" for k in range(2)), *(["rest"] if "rest" in names else [])]
        streams = [Stream(name, fragment=cut) for name, cut in zip(names, cuts, strict=True)]
        check_streams(streams, model)
        assert sum(stream_elements(stream, model) for stream in streams) == stream_elements(Stream("all"), model)


def rows(*tensors: tuple[str, tuple[int, ...]]) -> list[list[str]]:
    return [[tensors[position][0] for position in found] for found in blocks(tensors)]


def test_of_rows_in_rows_the_outermost_counts() -> None:
    experts = [(f"layers.{k}.experts.{e}.{w}", (4, 4)) for k in range(2) for e in range(3) for w in ("up", "down")]
    assert [len(found) for found in rows(*experts)] == [6, 6]


def test_stages_that_differ_are_no_blocks_but_what_is_alike_in_them_is() -> None:
    tensors = [
        (f"stages.{stage}.{k}.{part}", (4 << stage,)) for stage in range(2) for k in range(2 + stage) for part in "ab"
    ]
    assert [len(found) for found in rows(*tensors)] == [2] * 5


def test_an_embedding_and_a_head_that_are_alike_are_no_blocks() -> None:
    body = [tensor for k in range(2) for tensor in block(f"1.layers.{k}")]
    assert [len(found) for found in rows(("0.weight", (9, 4)), *body, ("2.weight", (9, 4)))] == [2, 2]


def test_two_towers_are_one_row_of_blocks() -> None:
    towers = [tensor for name in ("encoder", "decoder") for k in range(3) for tensor in block(f"{name}.layers.{k}")]
    assert [found[0].rsplit(".", 2)[0] for found in rows(*towers)] == [
        f"{name}.layers.{k}" for name in ("encoder", "decoder") for k in range(3)
    ]


@pytest.mark.parametrize(
    ("fragment", "tensors", "said"),
    [
        ("strided:0/7", GPT, "6 blocks, fewer than the 7 fragments"),
        ("sequential:1/2", (EMBEDDING, HEAD), "no blocks"),
        ("balanced:0/3", (EMBEDDING, HEAD), "2 tensors, fewer than the 3 fragments"),
        ("rest", tuple(block("l.0") + block("l.1")), "no tensor of the model is in fragment 'rest'"),
        ("strided", GPT, "unknown fragment 'strided'"),
        ("strided:2/2", GPT, "unknown fragment"),
        ("rest:0/2", GPT, "unknown fragment"),
        ("all:x", GPT, "unknown fragment"),
        ("half", GPT, "unknown fragment"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_next_step(
    fragment: str, tensors: tuple[tuple[str, tuple[int, ...]], ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        members(fragment, tensors)
    assert caught.value.hint


def test_a_parameter_in_two_streams_or_in_none_is_refused_by_name() -> None:
    model = tuple(TensorSpec(name, shape, "float32") for name, shape in GPT)
    assert len(stream_tensors(Stream("x", fragment="strided:0/2"), model)) == 6
    with pytest.raises(ConfigError, match=r"token\.weight is in two streams of param: x and y"):
        check_streams([Stream("x"), Stream("y", fragment="rest")], model)
    with pytest.raises(ConfigError, match=r"no stream of param covers layers\.0\.norm\.weight, .*, …"):
        check_streams([Stream("y", fragment="rest")], model)
    with pytest.raises(ConfigError, match="no stream of exp_avg covers"):
        check_streams([Stream("x"), Stream("y", state="exp_avg", fragment="rest")], model)
    check_streams([Stream("g", state="grad", fragment="rest"), Stream("x")], model)
