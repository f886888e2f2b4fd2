"""What was aimed at, beside what came out: read from the figures of a run of `scripts/bench`."""

from collections.abc import Iterator

from wantrain.bench.matrix import HEADLINE
from wantrain.bench.tables import link_of
from wantrain.bench.worker import Json

OF_GLOO = {"fp32": 1.0, "int8": 1.5}
"""Over loopback without CURVE, with 2 and 4 peers and 64 MB: at least so many times as fast as gloo in fp32."""
OF_GLOO_FAR = 8.0
"""Between two peers over the link `HEADLINE`, 64 MB, 4 bits up and 8 down."""
OF_THE_WIRE = 0.9
"""Over shaped links: at least this share of what raw sockets move over the same one."""
OURS = ("digest", "check", "apply")
"""What a peer does for every all-reduce and gloo does not, by its name in the figures."""


def aims(record: Json) -> list[tuple[str, str, str]]:
    """(what, aim, what came out) for everything that there are figures of."""
    rows = [row for row in record["allreduce"] if "failed" not in row]
    return [*_loopback(rows), *_far(rows), *_wire(rows), *_hops(rows)]


def _loopback(rows: list[Json]) -> Iterator[tuple[str, str, str]]:
    for codec, aim in OF_GLOO.items():
        found = [
            row
            for row in rows
            if row["group"] == "loopback" and not row["options"]["encrypt"] and row["options"]["codec"] == codec
            if row["options"]["size_mb"] == 64.0 and row["options"]["peers"] in (2, 4) and "gloo" in row["ratio"]
        ]
        if found:
            spent = [row["wantrain"]["spent_s"] for row in found]
            ours = sum(one.get(name, 0.0) for one in spent for name in OURS)
            share = ours / sum(one["loop"] + one["poll"] for one in spent)
            peers = " and ".join(str(row["options"]["peers"]) for row in found)
            ratios = ", ".join(f"{row['ratio']['gloo']:.2f}" for row in found)
            yield (
                f"{codec} over loopback, plain, 64 MB, {peers} peers: times as fast as gloo's fp32",
                f"{aim:g}",
                f"{ratios}; {share:.0%} of its thread's time are digests, checks and the outer update, which gloo "
                "has not",
            )


def _far(rows: list[Json]) -> Iterator[tuple[str, str, str]]:
    what = f"int4 up, int8 down, 64 MB, 2 peers, {link_of(HEADLINE)}: times as fast as gloo"
    for row in rows:
        options, ratio = row["options"], row["ratio"]
        if (options["lab"], options["size_mb"], options["codec"]) == (HEADLINE, 64.0, "int4") and "gloo" in ratio:
            yield what, f"{OF_GLOO_FAR:g}", f"{ratio['gloo']:.1f}"


def _wire(rows: list[Json]) -> Iterator[tuple[str, str, str]]:
    links = [row for row in rows if row["group"] == "links"]
    for rate in dict.fromkeys(row["options"]["lab"].split(",")[0] for row in links):
        for size, kept in (("fp32", ("fp32",)), ("fewer bits", ("int8", "int4"))):
            shares = [
                row["ratio"]["raw"]
                for row in links
                if row["options"]["lab"].startswith(f"{rate},")
                if row["options"]["codec"] in kept and "raw" in row["ratio"]
            ]
            if shares:
                enough = sum(share >= OF_THE_WIRE for share in shares)
                yield (
                    f"{size} over shaped links of {rate.removeprefix('rate=')}: of what the wire can do",
                    f"{OF_THE_WIRE:.0%}",
                    f"{min(shares):.0%} to {max(shares):.0%}; reached in {enough} of {len(shares)} rows",
                )


def _hops(rows: list[Json]) -> Iterator[tuple[str, str, str]]:
    """A ring of n peers has 2 (n - 1) hops, the direct topology 2."""
    seconds = {
        (row["options"]["lab"], row["options"]["peers"], row["options"]["size_mb"], row["options"]["topology"]): (
            row["wantrain"]["seconds"]
        )
        for row in rows
        if row["group"] == "topologies"
    }
    for (lab, peers, size_mb, topology), ring_s in seconds.items():
        direct_s = seconds.get((lab, peers, size_mb, "direct"))
        if topology == "ring" and direct_s is not None:
            what = f"direct, {peers} peers, {size_mb:g} MB, {link_of(lab)}: times as fast as the ring"
            yield what, f"{peers - 1}, the ratio of their hops", f"{ring_s / direct_s:.1f}"
