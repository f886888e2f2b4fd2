"""topk: of 4096 values the 64 largest, each as its distance to the one before and 2 bits; needs error feedback."""

import math

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import (
    FP32_MAX,
    block_count,
    block_rows,
    block_slices,
    not_finite,
    require_size,
    scratch,
    size_reason,
    tree_sum,
    unfit,
)

BLOCK, KEPT = 4096, 64
SPARSITY = BLOCK // KEPT
CODE_MAX = 2
SCALE_MAX = FP32_MAX / CODE_MAX


class TopK:
    """Layout: an fp32 scale per block; then of all kept values of all blocks, in order, the lower 8 bits of their gaps,
    the upper 4 (two a byte, the earlier one lower), and their codes (four a byte, the earliest lowest).

    A block keeps ceil(size / 64) values, equal magnitudes the earlier ones first. Gap = position - position before - 1
    (-1 before the first), which unlike positions packs well. A block with fewer nonzero values than that has positions
    behind its last value, which hold nothing. Scale = mean magnitude of what is kept; code = sign bit * 2 + (1 where
    the magnitude rounds to 2 scales or more), so a value is +-1 or +-2 times the scale.
    """

    name = "topk"

    def max_bytes(self, elements: int) -> int:
        kept = block_count(elements, SPARSITY)
        return 4 * block_count(elements, BLOCK) + kept + -(-kept // 2) + -(-kept // 4)

    def encode(self, source: Tensor, out: Tensor) -> int:
        elements, device = source.numel(), source.device
        require_size(self.name, out, self.max_bytes(elements))
        if not elements:
            return 0
        blocks, kept = block_count(elements, BLOCK), block_count(elements, SPARSITY)
        scales = out[: 4 * blocks].view(torch.float32)
        gaps = torch.empty(blocks * KEPT, dtype=torch.int32, device=device)
        codes = torch.empty(blocks * KEPT, dtype=torch.uint8, device=device)
        for run in block_slices(elements, BLOCK):
            rows = block_rows(source, run, BLOCK)
            width = min(BLOCK, elements - run.start * BLOCK)
            part = slice(run.start * KEPT, run.stop * KEPT)
            scales[run] = self._encode_rows(rows, width, gaps[part].view(-1, KEPT), codes[part].view(-1, KEPT))
        if not math.isfinite(scales.amax().item()):
            raise not_finite(self.name)
        low, high, values = _fields(out, blocks, kept)
        low.copy_(gaps[:kept].bitwise_and(255))
        high.copy_(_packed(gaps[:kept].bitwise_right_shift_(8), 2))
        values.copy_(_packed(codes[:kept], 4))
        return out.numel()

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        self._decode(encoded, out, None)

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        self._decode(encoded, acc, weight)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        if reason := size_reason(encoded, self.max_bytes(elements)):
            return reason
        if not elements:
            return None
        blocks = block_count(elements, BLOCK)
        low, high = (extreme.item() for extreme in torch.aminmax(encoded[: 4 * blocks].view(torch.float32)))
        if not (low >= 0 and high <= SCALE_MAX):  # false for NaN as well
            return f"a scale is negative, NaN or above {SCALE_MAX:g}: they lie between {low:g} and {high:g}"
        return _positions_reason(self._positions(encoded, elements), elements)

    @staticmethod
    def _encode_rows(rows: Tensor, width: int, gaps: Tensor, codes: Tensor) -> Tensor:
        """Fill int32[r, 64] gaps and uint8[r, 64] codes of fp32[r, 4096]; the scales, NaN or inf for such values."""
        device = rows.device
        kept = block_count(width, SPARSITY)
        order = torch.arange(BLOCK, device=device)
        # Bits of magnitudes sort like the magnitudes (NaN last); the position below them leaves no ties to the library.
        keys = (rows.view(torch.int32).bitwise_and(0x7FFFFFFF).to(torch.int64) << 12).bitwise_or_(BLOCK - 1 - order)
        positions = (BLOCK - 1) - torch.topk(keys, kept, dim=1, sorted=False).values.bitwise_and_(BLOCK - 1)
        largest = rows.gather(1, positions)
        nothing = (largest == 0) & (largest != 0).any(1, keepdim=True)
        positions = torch.where(nothing, width, positions).sort(1).values
        nothing = positions == width
        values = torch.where(nothing, 0.0, rows.gather(1, positions.clamp(max=BLOCK - 1)))
        exact = torch.zeros((len(rows), KEPT), dtype=torch.float64, device=device)
        exact[:, :kept] = values.abs()
        counts = (~nothing).sum(1)
        mean = (tree_sum(exact) / counts).float()
        scales = torch.where(torch.isfinite(mean), mean.clamp(max=SCALE_MAX), mean)
        divisors = torch.where(scales == 0, 1.0, scales).unsqueeze(1)
        codes[:, :kept] = ((values.abs() / divisors).round_() >= CODE_MAX) + 2 * (values < 0)
        unused = torch.arange(kept, device=device) - counts.unsqueeze(1)  # where nothing is left: width, width + 1, ...
        positions += torch.where(nothing, unused, 0)
        gaps[:, :kept] = torch.diff(positions, dim=1, prepend=torch.full_like(positions[:, :1], -1)) - 1
        return scales

    def _positions(self, encoded: Tensor, elements: int) -> Tensor:
        """int32[blocks, 64] positions in their blocks; behind the kept ones of a short block come larger ones."""
        blocks, kept = block_count(elements, BLOCK), block_count(elements, SPARSITY)
        low, high, _ = _fields(encoded, blocks, kept)
        gaps = torch.zeros(blocks * KEPT, dtype=torch.int32, device=encoded.device)
        gaps[:kept] = low.to(torch.int32) + (_unpacked(high, kept, 2).to(torch.int32) << 8)
        return torch.cumsum(gaps.view(-1, KEPT) + 1, 1, dtype=torch.int32) - 1

    def _decode(self, encoded: Tensor, target: Tensor, weight: float | None) -> None:
        elements, device = target.numel(), target.device
        require_size(self.name, encoded, self.max_bytes(elements))
        if not elements:
            return
        positions = self._positions(encoded, elements)
        if reason := _positions_reason(positions, elements):
            raise unfit(self.name, reason)
        blocks, kept = len(positions), block_count(elements, SPARSITY)
        codes = torch.zeros(blocks * KEPT, dtype=torch.uint8, device=device)
        codes[:kept] = _unpacked(_fields(encoded, blocks, kept)[2], kept, 4)
        values = ((codes & 1) + 1).float() * (1 - (codes & 2).float())
        values = values.view(-1, KEPT) * encoded[: 4 * blocks].view(torch.float32).unsqueeze(1)
        for run in block_slices(elements, BLOCK):
            part = target[run.start * BLOCK : run.stop * BLOCK]
            count = min(KEPT, kept - run.start * KEPT)
            wide = scratch("work", (run.stop - run.start) * (BLOCK + KEPT), torch.float32, device)
            rows = wide.zero_().view(-1, BLOCK + KEPT)
            rows.scatter_(1, positions[run, :count].long(), values[run, :count])
            if weight is None:
                part.view(len(rows), -1).copy_(rows[:, : part.numel() // len(rows)])
            else:
                part.view(len(rows), -1).add_(rows[:, : part.numel() // len(rows)].mul_(weight))


def _fields(encoded: Tensor, blocks: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the lower parts of gaps, their upper parts and the codes, all uint8."""
    start, middle = 4 * blocks + kept, 4 * blocks + kept + -(-kept // 2)
    return encoded[4 * blocks : start], encoded[start:middle], encoded[middle:]


def _packed(codes: Tensor, per_byte: int) -> Tensor:
    """uint8[ceil(n / per_byte)] from integers that fit 8 / per_byte bits."""
    padded = torch.zeros(-(-codes.numel() // per_byte) * per_byte, dtype=torch.uint8, device=codes.device)
    padded[: codes.numel()] = codes
    shifts = torch.arange(0, 8, 8 // per_byte, dtype=torch.uint8, device=codes.device)
    return (padded.view(-1, per_byte) << shifts).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, count: int, per_byte: int) -> Tensor:
    """uint8[count] from what `_packed` gave."""
    shifts = torch.arange(0, 8, 8 // per_byte, dtype=torch.uint8, device=packed.device)
    parts = torch.bitwise_right_shift(packed.unsqueeze(1), shifts)
    return parts.bitwise_and_(2 ** (8 // per_byte) - 1).view(-1)[:count]


def _positions_reason(positions: Tensor, elements: int) -> str | None:
    """Whether a kept value lies further behind its block than what holds nothing may."""
    last_width = elements - (len(positions) - 1) * BLOCK
    last_kept = block_count(last_width, SPARSITY)
    inside = positions[:-1].amax().item() < BLOCK + KEPT if len(positions) > 1 else True
    if inside and positions[-1, last_kept - 1].item() < last_width + last_kept:
        return None
    return "a position is out of range"
