"""Benchmarks: what the data path does on this machine, side by side with what people would use instead."""
