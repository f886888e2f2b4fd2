"""The table of failures: what happens, what must hold, and which simulated faults provoke it; data only.

Tests name the row that they check by a marker, `@pytest.mark.scenario(6)`. `scripts/failures` puts both together.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row.

    Attributes:
        happens: the failure.
        holds: what must be so all the same.
        faults: kinds of faults of the simulation (tests/sim/faults.py) that provoke it.
        why_not: the reason why nothing shows it, if nothing does.
    """

    happens: str
    holds: str
    faults: tuple[str, ...] = ()
    why_not: str = ""


SCENARIOS = {
    1: Scenario(
        "a peer is killed at any step of a sync",
        "the others commit one set of contributors, it wholly in it or not at all; inputs stay until the commit; "
        "at most one more attempt for each loss",
        ("crash", "crash-later", "storm"),
    ),
    2: Scenario(
        "one peer has finished a sync, another has not, a third dies",
        "no value counts twice or is lost; the next attempt starts from the same inputs",
        ("crash-later",),
    ),
    3: Scenario(
        "a peer is frozen for longer than its deadline, then goes on",
        "the others go on; it sees that it is behind, catches up and contributes again; its old messages change "
        "nothing",
        ("freeze", "late", "replay"),
    ),
    4: Scenario(
        "packets between two peers vanish, one way or both",
        "after a deadline they are led around or one is left out; parity",
        ("one-way", "pair", "flap"),
    ),
    5: Scenario(
        "the network is split, the coordinator on one side",
        "only that side commits; the other trains on by itself, comes back and ends with the same state",
        ("split",),
    ),
    6: Scenario(
        "the coordinator is killed at any step and started again",
        "no committed sync is forgotten, none is committed twice; training goes on meanwhile",
        ("coordinator", "coordinator-later", "coordinator-storm", "coordinator-freeze"),
    ),
    7: Scenario(
        "the coordinator's disk is full, slow, or its database locked",
        "it says so and decides nothing; nothing is half written; it goes on when there is room",
        ("disk-full", "disk-slow"),
    ),
    8: Scenario(
        "all peers but one leave, then others return",
        "the last one goes on alone, and back",
        (
            "leave",
            "leave-together",
        ),
    ),
    9: Scenario(
        "peers join: an empty run, a running one, several at once, during a sync, while another leaves",
        "those who train skip no step; the newcomer gets the same state; newcomers never outvote it",
        ("join",),
    ),
    10: Scenario(
        "a joiner, or who it fetches from, dies during the download; a source lies",
        "it goes on with what it has from others; every chunk is checked; who lies is dropped",
        ("crash", "crash-later", "liar"),
    ),
    11: Scenario(
        "a peer returns with old state, with that of another run, with a damaged one",
        "it replays, is refused with a reason, starts afresh: in that order",
        ("crash", "all-crash"),
    ),
    12: Scenario(
        "two peers claim one identity; an invite is expired, used up or forged; a key is not invited",
        "refused and logged; nobody is disturbed",
    ),
    13: Scenario(
        "garbage, cut, too large, of another version or run, or repeated frames on any socket",
        "dropped and counted; memory stays bounded; no process ends by it",
        ("replay", "garbage"),
    ),
    14: Scenario(
        "a contribution is not finite, huge, of the wrong shape, or of another sync",
        "refused before it reaches a sum, by name; the run goes on",
        ("poison", "too-large", "garbage"),
    ),
    15: Scenario(
        "the digest of one peer's state or update differs from the others'",
        "no commit with it; it is left out and fetches what is wrong anew",
        ("bit-flip",),
    ),
    16: Scenario(
        "the trainer dies and its daemon lives; the daemon dies and the trainer lives",
        "the new trainer goes on from the daemon; the trainer goes on alone and attaches again",
        ("trainer", "daemon", "memory-lost"),
    ),
    17: Scenario(
        "a link is ten times slower than the rest, limited, far, lossy, or changes all the time",
        "no false suspicion; shares follow the links; the others are slowed at most as the policy says",
        ("asymmetric", "slow", "flood", "flap", "late"),
    ),
    18: Scenario(
        "a peer can only dial out; two of them",
        "direct or relayed, and `wantrain doctor` says which",
    ),
    19: Scenario(
        "churn for long: joins, leaves and kills at random over a thousand syncs",
        "time per sync, memory, descriptors and files stay bounded; parity at the end",
        ("storm", "join", "leave", "crash"),
    ),
    20: Scenario(
        "clocks jump or stand still, and differ between hosts",
        "only each host's own monotonic time decides",
        ("clock-jump", "clock-stop"),
    ),
    21: Scenario(
        "another protocol version, other codecs, other options of the method",
        "refused when it joins, with both versions named",
    ),
    22: Scenario(
        "a peer is killed while it writes a checkpoint; a run goes on from one with fewer or more peers",
        "the last whole checkpoint is loaded; a torn one is recognised",
        ("all-crash", "disk-lost", "peer-disk-full"),
    ),
    23: Scenario(
        "in a pair exchange the partner is lost before, between or after the halves",
        "both apply it or neither does; the mean over the peers stays",
    ),
    24: Scenario(
        "Ctrl-C, SIGTERM, a second Ctrl-C",
        "it leaves in order within a bound; at once after the second",
        ("leave",),
    ),
}
