"""The codecs by name with what is known of each without torch: bits, whether it needs error feedback; data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wantrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write values, without an entropy stage."""

    bits: float
    """Bits per value on the wire; for the rms formats, made to be entropy coded, with their best stage."""
    coded_bits: Mapping[str, float] = field(default_factory=dict)
    """Bits per value with a stage, measured on Gaussian values; key "": without one, where that is not `bits`."""
    error_feedback: bool = False
    """Whether what it loses must be kept and added to the next contribution: then it is for the way up only."""
    per_hop: bool = False
    """Whether re-encoding at every hop of a ring is tolerable: for 8 bits and above."""
    down: str = ""
    """Codec of the way down where this one is that of the way up and none is named; "" for the same."""


FORMATS: dict[str, Format] = {
    "fp32": Format(32, {"zstd": 29.6, "huffman": 29.6}, per_hop=True),
    "bf16": Format(16, {"zstd": 12.4, "huffman": 12.5}, per_hop=True),
    "bf16-planes": Format(16, {"zstd": 10.9, "huffman": 10.6}, per_hop=True),
    "int8": Format(8.125, {"zstd": 7.6, "huffman": 7.6}, per_hop=True),
    "int4": Format(4.25, {"zstd": 3.83, "huffman": 3.77}, down="int8"),
    "e2m1": Format(4.25, down="int8"),
    "e3m0": Format(4.016, {"zstd": 3.52, "huffman": 3.53}, down="int8"),
    "rms0.35": Format(3.64, {"": 8.031, "zstd": 3.68}, down="int8"),
    "rms0.5": Format(3.17, {"": 8.031, "zstd": 3.24}, down="int8"),
    "rms0.75": Format(2.58, {"": 8.031, "zstd": 2.90}, error_feedback=True, down="int8"),
    "rms1": Format(2.26, {"": 8.031, "zstd": 2.66}, error_feedback=True, down="int8"),
    "sign": Format(1.031, error_feedback=True, down="int8"),
    "topk": Format(0.227, {"zstd": 0.156, "huffman": 0.171}, error_feedback=True, down="int8"),
}
AUTO = "auto"
"""Stands for a codec of the way up that each sync chooses; see `wantrain.peers.codec_choice`."""
AUTO_CODECS: dict[str, float] = {"int8": 1.7e-9, "rms0.35+zstd": 6.8e-9, "rms0.75+huffman": 2.6e-8}
"""What it chooses from, most bits first, and seconds of one core for each value, to write it and to add it up."""
AUTO_DOWN = "int8"
STAGES: dict[str, str] = {
    "zstd": "zstd level 1: best from 3 bits up, about 1 GB/s of codes",
    "huffman": "deflate without string matching: best below 3 bits, slower",
}
"""Entropy stages by name, written "format+stage", and what each is."""
NAMES = tuple(sorted([*FORMATS, *(f"{name}+{stage}" for name in FORMATS for stage in STAGES)]))
"""Every codec: the keys of `table.CODECS`, for those who do without torch."""


def choices(codec: str) -> tuple[str, ...]:
    """What may be said of a single sync where this is the codec of the way up: "" unless that is left to each sync."""
    return tuple(AUTO_CODECS) if codec == AUTO else ("",)


def down_of(codec: str) -> str:
    """Codec of the way down where this one is that of the way up and none is named; "" for the same.

    Raises:
        ConfigError: unknown format or stage.
    """
    return AUTO_DOWN if codec == AUTO else format_of(codec).down


def format_of(codec: str) -> Format:
    """The format of a codec name such as "int8" or "int4+zstd".

    Raises:
        ConfigError: unknown format or stage.
    """
    return _split(codec)[0]


def bits(codec: str) -> float:
    """Bits per value on the wire; with an entropy stage as measured on Gaussian values, where scales are alike.

    Raises:
        ConfigError: unknown format or stage.
    """
    form, stage = _split(codec)
    return form.coded_bits.get(stage, form.bits)


def _split(codec: str) -> tuple[Format, str]:
    if codec == AUTO:
        raise ConfigError(
            f"codec {AUTO!r} is for the way up in a run, where each sync chooses its own",
            hint=f"name one, such as {', '.join(AUTO_CODECS)}",
        )
    name, plus, stage = codec.partition("+")
    if name not in FORMATS or (plus and stage not in STAGES):
        raise ConfigError(
            f"unknown codec {codec!r}",
            hint=f"choose one of {', '.join(FORMATS)}, alone or with +{' or +'.join(STAGES)} behind it; "
            "rms0.35 and rms0.5 want +zstd, rms0.75 and rms1 +huffman: alone they take 8 bits a value",
        )
    return FORMATS[name], stage
