"""The evidence that the checkers see: every safeguard taken out, and the first seed that shows it.

    python benchmarks/ablation.py [NAME …] [--seeds 1000] [--jobs 2]

Prints the table of docs/design.md. Exit code 1 where a safeguard's own checker did not notice.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="safeguards; all without")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()

    import scenarios.simulation  # noqa: F401  (and torch with it, before the fork)
    from scenarios.ablation.safeguards import SAFEGUARDS, safeguard
    from scenarios.checkers.findings import INVARIANTS
    from scenarios.explore import run_seed
    from scenarios.settings import load_scenario
    from scenarios.workers import spread

    names = options.names or list(SAFEGUARDS)

    def first(task: int) -> bytes:
        guard = safeguard(names[task])
        scenario, called = load_scenario(guard.scenario), INVARIANTS[guard.caught_by][0]
        for seed in range(options.seeds):
            if not guard.shows(scenario.with_seed(seed).with_chaos()):
                continue
            failed = run_seed(scenario, seed, ablate=names[task]).failed
            if any(check.name == called for check in failed):
                return str(seed).encode()
        return b""

    found = dict(spread(first, len(names), jobs=options.jobs))
    print("| safeguard | without it | checker that misses it | first seed |\n|---|---|---|---|")
    for place, name in enumerate(names):
        guard, seed = safeguard(name), (found[place] or b"none").decode()
        where = "" if guard.scenario == "chaos" else f" of {guard.scenario}"
        print(f"| {name} | {guard.protects} | {INVARIANTS[guard.caught_by][0]} | {seed}{where} |")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
