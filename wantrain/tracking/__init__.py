"""Trackers: where the numbers of a peer are written as it trains, beside `wantrain status`."""
