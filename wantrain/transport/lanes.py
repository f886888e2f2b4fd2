"""How many TCP connections carry the bulk bytes to a peer: as many as what one of them can carry asks for; pure."""

from math import inf, sqrt

from wantrain.transport.transfer import LOCAL_RTT_S

MAX_LANES = 16
ONE_LANE_BYTES = 3.5e6
"""What one connection has under way at most with the usual 4 MB of send buffer: 285 Mbit/s at 100 ms."""
BBR_LOSSY_BYTES = 1.9e6
"""The same for bbr on a lossy path: 155 Mbit/s at 100 ms and 0.1 %, and all of 100 Mbit/s even at 1 %."""
FIRST_STEP = 4
"""Lanes, if one is not enough: a new one is slow for some round trips, so that one step costs less than two."""
BURST_ROUND_TRIPS = 2
"""A burst that takes few lanes more than this asks for others: a shorter one would not get them up to speed."""
SEGMENT_BYTES = 1448
LOSSY = 2e-4
"""Share of lost segments from which loss decides what a connection carries."""
FULL = 0.5
"""Share of what the connections can carry at which more are wanted: the newest may not be up to speed yet."""
FULL_LOSSY = 0.36
"""The same on a lossy path: a long one holds bbr at 2.5 MB/s a lane at 300 ms and 0.1 %, of the 6.3 MB/s above."""


def lane_bytes_per_s(rtt_s: float, loss: float, congestion: str) -> float:
    """What one TCP connection can carry; infinite on a path without distance.

    Loss-based control (cubic, reno) follows Mathis et al. 1997, eq. 3: 1.22 segments / (rtt * sqrt(loss)). The
    constants of windows and of bbr are measured; see ONE_LANE_BYTES and BBR_LOSSY_BYTES.
    """
    if rtt_s < LOCAL_RTT_S:
        return inf
    window = ONE_LANE_BYTES / rtt_s
    if loss < LOSSY:
        return window
    lossy = BBR_LOSSY_BYTES if congestion.startswith("bbr") else 1.22 * SEGMENT_BYTES / sqrt(loss)
    return min(window, lossy / rtt_s)


def lanes_wanted(
    rate_bytes_per_s: float,
    rtt_s: float,
    loss: float,
    congestion: str,
    lanes_now: int,
    *,
    busy: bool,
    burst_bytes: int = 0,
) -> int:
    """How many lanes to use from now on: as many as now, or twice that, and at least FIRST_STEP then.

    More, if they carry nearly what so many can and are busy; or if a burst was more than few lanes carry in two round
    trips: it fits into the window, but would take several. A lane that carries far more than its loss allows for makes
    that loss itself, by filling the path's queue: then only the window counts.

    Args:
        rate_bytes_per_s: what all lanes together carry; 0 if unknown.
        rtt_s: round trip; 0 if unknown.
        loss: share of segments sent again.
        congestion: the lanes' congestion control as the kernel names it; "" if unknown.
        lanes_now: lanes in use.
        busy: more was to be sent than they took.
        burst_bytes: the most that was under way at once.
    """
    now = max(lanes_now, 1)
    each = lane_bytes_per_s(rtt_s, loss, congestion)
    if rate_bytes_per_s / now > 2 * each:
        loss = 0.0
        each = lane_bytes_per_s(rtt_s, loss, congestion)
    more = busy or (now < FIRST_STEP and burst_bytes > BURST_ROUND_TRIPS * now * each * rtt_s)
    full = FULL if loss < LOSSY else FULL_LOSSY
    return min(max(2 * now, FIRST_STEP), MAX_LANES) if more and rate_bytes_per_s >= full * now * each else now
