"""Schedules that every machine and Python must repeat: what happens to whom when, without weights.

    python tests/support/schedules.py            compare with tests/scenarios/schedules.json
    python tests/support/schedules.py --write    make it anew, where a change of schedules is meant

The task is quadratic, so that no rounding of any model can decide when something happens. Graphs
are rings: networkx promises no random graph from one release to the next.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Final

from scenarios.settings import parse_scenario
from scenarios.simulation import simulate

FILE: Final = Path(__file__).parents[1] / "scenarios" / "schedules.json"
SEEDS: Final = 5

HEAD: Final = """
name = "schedule"
topology = { kind = "ring", nodes = 6 }
[task]
name = "quadratic"
dimension = DIMENSION
[learning]
rounds = 20
local_steps = 2
learning_rate = 0.1
final_mixing = 4
deadline_max_s = 1.0
evaluate_every = 1000
[compute]
step_ms = 150
persist_ms = 3
[network]
latency_ms = 20
jitter_ms = 7
"""
SCENARIOS: Final = {
    "calm": HEAD.replace("DIMENSION", "8") + "bandwidth_mbps = 3\nloss = 0.02\n",
    "cut": HEAD.replace("DIMENSION", "8")
    + """
[[event]]
at = "round 3"
partition = [["n[0-2]"], ["n[3-5]"]]
[[event]]
at = "round 8"
heal = true
[[event]]
at = "round 10"
crash = "n1"
[[event]]
at = "round 13"
restart = "n1"
""",
    # chunks of 512 KiB and one of 76 KB, some of them lost
    "broker": HEAD.replace("DIMENSION", "150000")
    + 'transport = "mqtt"\nbandwidth_mbps = 100\nloss = 0.1\n',
    "chaos": HEAD.replace("DIMENSION", "8") + "[chaos]\n",
}


def schedules() -> dict[str, list[str]]:
    """The schedule hashes of every scenario, by seed."""
    made = {}
    for name, text in SCENARIOS.items():
        scenario = parse_scenario(text, source=f"{name}.toml")
        hashes = [simulate(scenario, seed=seed).schedule_hash for seed in range(SEEDS)]
        made[name] = [hash_ or "" for hash_ in hashes]
    return made


def main() -> int:
    made = schedules()
    if "--write" in sys.argv[1:]:
        FILE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        return 0
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    wrong = [name for name in SCENARIOS if made[name] != kept.get(name)]
    count = sum(map(len, made.values()))
    said = f"differ in {', '.join(wrong)}" if wrong else "all as in schedules.json"
    print(f"Python {platform.python_version()}, {platform.machine()}: {count} schedules, {said}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
