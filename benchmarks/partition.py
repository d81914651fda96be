"""What a partition does to a consortium, and how soon it is over: a table over seeds.

    python benchmarks/partition.py [long-cut] [--seeds 10] [--optimizer sgd] [--momentum M] [--ring]

Rounds and seconds from the heal until D is within 1.5 times that of the same-seed run without the
cut; the greatest ratio of the two; how far the sides' mean models came to be apart, also as a
multiple of the undisturbed run's and of D; accuracy of the worst node at the heal and at the end.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

HEAD = " seed rounds      s   peak  apart      ×    /D  heal   end"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="?", default="long-cut")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--momentum", type=float)
    parser.add_argument("--optimizer")
    parser.add_argument("--ring", action="store_true", help="the same nodes along a ring")
    options = parser.parse_args()

    from msgspec import structs

    from scenarios.settings import check_scenario, load_scenario
    from scenarios.simulation import simulate
    from topology.settings import TopologySettings

    loaded = load_scenario(options.scenario)
    asked = {"momentum": options.momentum, "optimizer": options.optimizer}
    changed = {key: value for key, value in asked.items() if value is not None}
    learning = structs.replace(loaded.settings.learning, **changed)
    topology = loaded.settings.topology
    if options.ring:
        topology = TopologySettings(kind="ring", nodes=topology.nodes)
    settings = structs.replace(loaded.settings, learning=learning, topology=topology)
    scenario = check_scenario(settings, source=loaded.source)
    print(HEAD)
    for seed in range(options.seeds):
        run = simulate(scenario.with_seed(seed))
        cut = run.partitions[0]
        since = [one for one in cut.apart if one.round > cut.start_round and one.consensus > 0]
        over = max(one.distance / one.consensus for one in since)
        healed = cut.end or 0.0
        at_heal = min([p for p in side.accuracy if p[0] <= healed][-1][2] for side in cut.sides)
        end = min(node.accuracy or 0.0 for node in run.nodes)
        rounds = "never" if cut.reconverged_rounds is None else cut.reconverged_rounds
        seconds = "never" if cut.reconverged_s is None else f"{cut.reconverged_s:.1f}"
        print(
            f"{seed:>5} {rounds:>6} {seconds:>6} {cut.peak_ratio or 0:>6.2f} "
            f"{cut.apart_peak or 0:>6.2f} {cut.apart_peak_ratio or 0:>6.1f} {over:>5.2f} "
            f"{at_heal:>5.3f} {end:>5.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
