"""
Memory of a router process under requests: it must not grow with their number.

    python -m bench.router_memory [--requests 50000] [--streams 2000] [--concurrency 16] [--rounds 5] [-o json]

The same upstream and configuration as `bench.router_cpu`. The load comes in equal rounds, and the resident set is read after each:
the first rounds fill pools, caches and the allocator's arenas; after them a router that keeps nothing of a request stays level.

Its one rule: growth is judged between the second round and the last, never against the empty process.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from bench.router_cpu import load, process, router_yaml


def rss_kib(pid: int) -> int:
    """Resident set of a process, in KiB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0])


def measure(url: str, pid: int, kind: str, count: int, concurrency: int, rounds: int) -> dict[str, object]:
    """
    Returns:
        RSS in KiB before and after each round, and the growth from the second round to the last in bytes a request.
    """
    before = rss_kib(pid)
    after = []
    for _ in range(rounds):
        asyncio.run(load(f"{url}/v1/chat/completions", count // rounds, concurrency, kind == "stream"))
        after.append(rss_kib(pid))
    later = count // rounds * (rounds - 2)
    growth = (after[-1] - after[1]) * 1024 / later if later > 0 else None
    return {
        "kind": kind,
        "requests": count,
        "before_kib": before,
        "after_kib": after,
        "growth_bytes_per_request": None if growth is None else round(growth, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Resident memory of a router under requests.")
    parser.add_argument("--requests", type=int, default=50_000, help="JSON requests")
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", choices=["table", "json"], default="table", dest="output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, process("upstream") as (upstream, _):
        config = router_yaml(f"{upstream}/v1", Path(folder))
        with process("router", ROUTER_YAML=str(config)) as (url, pid):
            rows = [
                measure(url, pid, kind, count, args.concurrency, args.rounds)
                for kind, count in (("json", args.requests), ("stream", args.streams))
            ]
    if args.output == "json":
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        for row in rows:
            sys.stdout.write("  ".join(f"{name}={value}" for name, value in row.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
