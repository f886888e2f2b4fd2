"""Streams over the moments that Adam and its relatives keep, beside those over the parameters themselves."""

from dataclasses import replace

from wantrain.optimizers.stream import Stream, Wire


def moments(param: Stream, wire: Wire, every: int, every_sq: int) -> tuple[Stream, Stream]:
    """Two streams, exp_avg (m) every `every` steps and exp_avg_sq (v) every `every_sq`: means of the peers' own.

    They take over how `param` is weighed and moved. Values of one block of v span orders of magnitude, and an update
    is m / sqrt(v): a codec with one scale per block would leave the small ones with errors beyond their size. So
    moments go as bf16, or as fp32 if parameters do, too. v is kept at 0 or above. A peer that missed a sync takes the
    common moments as they are.
    """
    codec = "fp32" if wire.codec == "fp32" else "bf16"
    first = replace(
        param, name="exp_avg", state="exp_avg", every=every, merge="mean", merge_options=(), codec=codec, down=codec,
        late="adopt",
    )  # fmt: skip
    return first, replace(first, name="exp_avg_sq", state="exp_avg_sq", every=every_sq, merge="nonnegative-mean")
