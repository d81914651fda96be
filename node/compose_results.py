"""The last service of a demonstration: it waits for all members, says for whom, prints what each
reached, and lets the broker go, so that `docker compose up` comes to its end.

Members have no such service: nobody else may read their volumes, and their broker stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from node.compose_parts import Options, after, quoted

RESULTS: Final = "results"
FINISHED: Final = "finished"  # the file in the broker's volume that says so


def telling(members: Sequence[str], options: Options) -> list[str]:
    """Its lines. It starts after the members, who start after the broker: that has been healthy."""
    broker = options.broker
    mark = None if broker is None else f"/broker/{FINISHED}"
    script = _SCRIPT.format(members=" ".join(members), mark=mark)
    volumes = [f"{member}:/members/{member}:ro" for member in members]
    volumes += [] if broker is None else [f"{broker.config}:/broker"]
    return [
        f"  {RESULTS}:                   # for demonstration: reads what belongs to each member",
        f"    image: {quoted(options.image)}",
        '    user: "0:0"',
        "    init: true",
        "    network_mode: none",
        "    read_only: true",
        '    security_opt: ["no-new-privileges:true"]',
        "    healthcheck: { disable: true }",
        *(f"  {line}" for line in after(*((member, "service_started") for member in members))),
        "    volumes:",
        *(f"      - {volume}" for volume in volumes),
        "    entrypoint:",
        "      - python",
        "      - -c",
        "      - |",
        *(f"        {line}".rstrip() for line in script.splitlines()),
    ]


def until_told(config: str) -> list[str]:
    """The broker's command: mosquitto, until all have finished. ``config``: its folder there."""
    # compose takes a single dollar for a variable of its own
    words = (
        f"mosquitto -c {config}/mosquitto.conf & "
        f"while kill -0 $$! 2>/dev/null && ! [ -e {config}/{FINISHED} ]; do sleep 1; done; "
        "kill $$! 2>/dev/null; wait $$!"
    )
    return [
        "    # until all have finished",
        f"    command: [sh, -c, {quoted(words)}]",
        "    init: true",
    ]


_SCRIPT: Final = """\
import json, time
from pathlib import Path

def finished(member):
    try:
        result = json.loads(Path("/members", member, "result.json").read_text())
    except (OSError, ValueError):
        return None
    return result if result["ended"] == "finished" else None

def figure(value):
    return "-" if value is None else f"{{value:.3f}}"

members, mark = "{members}".split(), {mark!r}
waited = 0
while missing := [member for member in members if not finished(member)]:
    waited += 1
    if waited % 30 == 0:
        print(f"after {{waited}} s not finished yet: {{', '.join(missing)}}", flush=True)
    time.sleep(1)
time.sleep(2)  # the last good-byes go out
lines = ["all have finished; on the rows that were held out for all:"]
for member in members:
    found = finished(member)
    figures = ", ".join(f"{{name}} {{figure(found[name])}}" for name in ("accuracy", "auroc"))
    lines.append(f"{{member:12}} {{figures}}; sent {{found['sent_bytes'] / 1e6:.2f}} MB")
print("\\n".join(lines), flush=True)
if mark:
    Path(mark).touch()"""
