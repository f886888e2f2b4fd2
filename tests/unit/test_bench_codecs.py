"""The codec benchmark: its rows hold what it says, and its table shows them beside what was expected."""

import io

import pytest
import torch
from rich.console import Console

from wantrain.bench.codecs import EXPECTED, measure, table
from wantrain.errors import ConfigError


def test_a_row_per_codec_with_errors_bits_and_speeds() -> None:
    threads = torch.get_num_threads()
    rows = measure(["fp32", "int8", "rms1+huffman"], 8192, 0.01)
    assert torch.get_num_threads() == threads
    assert [row["codec"] for row in rows] == ["fp32", "int8", "rms1+huffman"]
    assert [row["expected"] for row in rows] == [EXPECTED["fp32"], EXPECTED["int8"], EXPECTED["rms1"]]
    assert rows[0]["error_gaussian"] == rows[0]["error_t4"] == 0
    assert rows[1]["error_gaussian"] == pytest.approx(0.007, rel=0.1)
    assert [row["raw_bits"] for row in rows] == [32, 8.125, 8.03125]
    assert rows[2]["bits"] < 3
    assert all(row[operation] > 0 for row in rows for operation in ("encode", "decode", "accumulate"))


def test_the_table_shows_measured_and_expected() -> None:
    shown = io.StringIO()
    Console(width=140, file=shown).print(table(measure(["e3m0"], 4096, 0.001)))
    text = shown.getvalue()
    assert "e3m0" in text
    assert "(19.60%)" in text
    assert "(3.46)" in text


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ConfigError, match="int9"):
        measure(["int9"], 1024, 0.01)
