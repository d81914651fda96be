"""The report's words and tables as HTML: verdict, facts, a row per node, absences, checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from scenarios.record import Alone, Missed, NodeRun, Run, level
from scenarios.report.page import text

# A page that people read: of a thousand nodes the worst are of interest.
ROWS_MAX: Final = 40
WORST: Final = 20
ABSENCES_MAX: Final = 24
ODDITIES_NODES: Final = 12
NAMES_MAX: Final = 6


def verdict(run: Run) -> tuple[str, bool]:
    """What happened, in plain words, and whether it went as it should."""
    finished, others = run.finished, [n for n in run.nodes if n.ended != "finished"]
    total = len(run.nodes)
    whole = "All" if len(finished) == total else f"{len(finished)} of"
    parts = [f"{whole} {total} nodes finished {run.rounds} rounds."]
    if others:
        parts.append(f"Not there to the end: {_listed([_end(node) for node in others])}.")
    parts += _figures_in_words(run, finished)
    failed = [check for check in run.checks if not check.ok]
    if failed:
        parts.append(f"Not as expected: {_listed([check.name for check in failed])}.")
    return " ".join(parts), not failed and bool(finished)


def _end(node: NodeRun) -> str:
    part = f"round {node.rounds}" if node.rounds else "took no part at all"
    return f"{node.name} ({node.ended}, {part})"


def _figures_in_words(run: Run, finished: Sequence[NodeRun]) -> list[str]:
    together = level(node.accuracy for node in finished)
    if together is None:
        loss = level(node.loss for node in finished)
        return [] if loss is None else [f"Mean loss {number(loss.mean)}."]
    words = [
        f"On the common test rows the model of the consortium is right in {pct(together.mean)}"
    ]
    if together.max > together.min:
        words[0] += f" ({pct(together.min)} to {pct(together.max)} by node)"
    if run.baselines:
        here = {node.name for node in finished}
        alone = level(a.accuracy for a in run.baselines.local_only if a.node in here)
        if alone is not None:
            words.append(f"the same nodes alone in {pct(alone.mean)} (worst {pct(alone.min)})")
        if run.baselines.pooled is not None and run.baselines.pooled.accuracy is not None:
            words.append(f"one model on all rows in {pct(run.baselines.pooled.accuracy)}")
    return [", ".join(words) + "."]


def facts(run: Run) -> str:
    """The run in numbers, as a row of small boxes."""
    sent = sum(node.sent_bytes for node in run.nodes)
    auroc = level(node.auroc for node in run.honest)
    boxes = [
        ("task", run.task or None),
        ("engine", run.engine),
        ("seed", run.seed),
        ("rounds", f"{run.training_rounds} + {run.rounds - run.training_rounds}"),
        ("mean AUROC", pct(auroc.mean) if auroc else None),
        ("consensus D", number(run.consensus_distance, 2)),
        ("D / ‖model‖", number(run.consensus_relative, 2)),
        ("bytes sent", megabytes(sent)),
        ("wall time", f"{run.wall_s:.1f} s"),
        ("virtual time", None if run.virtual_s is None else f"{run.virtual_s:.1f} s"),
    ]
    items = [
        f"<li><b>{text(value)}</b><span>{text(name)}</span></li>"
        for name, value in boxes
        if value not in (None, "–")
    ]
    return f'<ul class="facts">{"".join(items)}</ul>'


def nodes(run: Run) -> str:
    """One row a node: alone, and with the consortium; the pooled model below."""
    shown = list(run.nodes)
    more = ""
    if len(shown) > ROWS_MAX:
        shown = sorted(shown, key=_worst_first)[:WORST]
        more = f"<p class=soft>The {WORST} worst of {len(run.nodes)} nodes.</p>"
    alone = {a.node: a for a in run.baselines.local_only} if run.baselines else {}
    with_auroc = any(node.auroc is not None for node in shown)
    figures = [("accuracy", "accuracy"), ("own_accuracy", "accuracy, own rows")]
    if with_auroc:
        figures.insert(1, ("auroc", "AUROC"))
        figures.append(("own_auroc", "AUROC, own rows"))
    if all(node.accuracy is None for node in shown):
        figures = [("loss", "loss")]
    rows = [_node_row(run, node, alone.get(node.name), figures) for node in shown]
    if more:
        rows.append(_mean_row(run, alone, figures))
    rows += _pooled_row(run, figures)
    kind = 'class=group colspan="2"' if run.baselines else "rowspan=2"
    spans = "".join(f"<th {kind}>{text(label)}</th>" for _, label in figures)
    under = "<th>alone</th><th>together</th>" * len(figures) if run.baselines else ""
    head = (
        f"<tr><th class=l rowspan=2>node</th><th rowspan=2>rows</th>{spans}"
        "<th rowspan=2>rounds</th><th rowspan=2>sent,<br>received</th>"
        f"<th class=l rowspan=2>ended</th></tr><tr>{under}</tr>"
    )
    return _table(head, rows) + more


def _worst_first(node: NodeRun) -> tuple[bool, float, str]:
    figure = node.accuracy if node.accuracy is not None else -(node.loss or 0.0)
    return node.ended == "finished", figure, node.name


def _node_row(
    run: Run, node: NodeRun, alone: Alone | None, figures: Sequence[tuple[str, str]]
) -> str:
    malicious = "<small>malicious</small>" if node.name in run.attackers else ""
    cells = [f"<td class=l>{text(node.name)}{malicious}</td><td>{node.samples:,}</td>"]
    for key, _ in figures:
        show = number if key == "loss" else pct
        for of in (alone, node) if run.baselines else (node,):
            found = show(getattr(of, key)) + _interval(of, key) if of else "–"
            cells.append(f"<td>{found}</td>")
    good = "ok" if node.ended == "finished" else "no"
    cells.append(
        f"<td>{node.rounds}</td>"
        f"<td>{megabytes(node.sent_bytes)}<br>{megabytes(node.received_bytes)}</td>"
        f'<td class="l {good}">{text(node.ended)}</td>'
    )
    return f"<tr>{''.join(cells)}</tr>"


def _mean_row(run: Run, alone: Mapping[str, Alone], figures: Sequence[tuple[str, str]]) -> str:
    """Mean and range over all honest nodes."""
    honest = [node for node in run.nodes if node.name not in run.attackers]
    cells = []
    for key, _ in figures:
        show = number if key == "loss" else pct
        for many in (alone.values(), honest) if run.baselines else (honest,):
            found = level(getattr(one, key) for one in many)
            if found is None:
                cells.append("<td>–</td>")
                continue
            between = f"<small>{show(found.min)} – {show(found.max)}</small>"
            cells.append(f"<td>{show(found.mean)}{between}</td>")
    sent = sum(node.sent_bytes for node in run.nodes)
    received = sum(node.received_bytes for node in run.nodes)
    return (
        f"<tr class=sum><td class=l>all {len(run.nodes)}: mean, and range</td>"
        f"<td>{sum(node.samples for node in run.nodes):,}</td>{''.join(cells)}"
        f"<td></td><td>{megabytes(sent)}<br>{megabytes(received)}</td>"
        f"<td class=l>{len(run.finished)} finished</td></tr>"
    )


def _pooled_row(run: Run, figures: Sequence[tuple[str, str]]) -> list[str]:
    pooled = run.baselines.pooled if run.baselines else None
    if pooled is None:
        return []
    cells = []
    for key, _ in figures:
        show = number if key == "loss" else pct
        cells.append(f"<td></td><td>{show(getattr(pooled, key))}{_interval(pooled, key)}</td>")
    rows = sum(node.samples for node in run.nodes)
    return [
        f"<tr class=sum><td class=l>pooled: one model, all rows</td><td>{rows:,}</td>"
        f"{''.join(cells)}<td colspan=3></td></tr>"
    ]


def _interval(of: NodeRun | Alone, key: str) -> str:
    found = of.intervals.get(key)
    return "" if found is None else f"<small>{100 * found[0]:.1f} – {100 * found[1]:.1f}</small>"


def absences(run: Run) -> str:
    """Who was missing, from whom, since which round and why; of many, the sums by reason."""
    found = [(node.name, missed) for node in run.nodes for missed in node.missed]
    if not found:
        return "<p>Every node heard every neighbour in every round.</p>"
    more = ""
    if len(found) > ABSENCES_MAX:
        more = _by_reason(found)
        found = sorted(found, key=lambda one: -one[1].rounds)[: ABSENCES_MAX // 2]
        more += f"<p class=soft>The {len(found)} that missed most:</p>"
    lines = [
        f"<tr><td class=l>{text(missed.peer)}</td><td class=l>{text(name)}</td>"
        f"<td>{missed.rounds}</td><td>{missed.first}</td><td>{missed.last}</td>"
        f'<td class="l wrap">{text(missed.why)}</td></tr>'
        for name, missed in found
    ]
    head = (
        "<tr><th class=l>who was missing</th><th class=l>at</th><th>rounds</th><th>first</th>"
        "<th>last</th><th class=l>why (last time)</th></tr>"
    )
    return more + _table(head, lines)


def _by_reason(found: Sequence[tuple[str, Missed]]) -> str:
    by_why: dict[str, list[Missed]] = {}
    for _, missed in found:
        by_why.setdefault(missed.why, []).append(missed)
    ordered = sorted(by_why.items(), key=lambda one: (-sum(m.rounds for m in one[1]), one[0]))
    lines = [
        f'<tr><td class="l wrap">{text(why)}</td><td>{len(some)}</td>'
        f"<td>{sum(m.rounds for m in some):,}</td><td>{min(m.first for m in some)}</td>"
        f"<td>{max(m.last for m in some)}</td></tr>"
        for why, some in ordered[:ABSENCES_MAX]
    ]
    head = (
        "<tr><th class=l>why (last time)</th><th>directions of links</th><th>rounds in all</th>"
        "<th>first</th><th>last</th></tr>"
    )
    return _table(head, lines)


def oddities(run: Run) -> str:
    """Refused input, one-sided edges, late versions, jumps; "" where nothing of it happened."""
    found: dict[str, list[tuple[str, int]]] = {}  # what -> (node, how often)
    for node in run.nodes:
        counts = {f"refused: {reason}": count for reason, count in node.rejections.items()}
        counts |= {
            "one-sided edges": node.half_edges,
            "late versions": node.late,
            "jumps over rounds": node.jumped,
            "starts after the first": node.resumed,
        }
        for what, count in counts.items():
            if count:
                found.setdefault(what, []).append((node.name, count))
    if not found:
        return ""
    lines = []
    for what, nodes in list(found.items())[:ROWS_MAX]:
        most = sorted(nodes, key=lambda one: -one[1])[:ODDITIES_NODES]
        where = ", ".join(f"{name} {count}" for name, count in most)
        if len(nodes) > len(most):
            where += f" and {len(nodes) - len(most)} more nodes"
        total = sum(count for _, count in nodes)
        lines.append(
            f'<tr><td class="l wrap">{text(what)}</td><td>{total:,}</td>'
            f'<td class="l wrap">{text(where)}</td></tr>'
        )
    head = "<tr><th class=l>also seen</th><th>times</th><th class=l>at</th></tr>"
    return "<h2>Also seen</h2>" + _table(head, lines)


def checks(run: Run) -> str:
    """What had to hold, and whether it did."""
    if not run.checks:
        return ""
    lines = [
        f'<tr><td class="{"ok" if c.ok else "no"} l">{"holds" if c.ok else "FAILED"}</td>'
        f'<td class="l wrap">{text(c.name)}</td><td>{_loose(c.value)}</td>'
        f"<td>{_loose(c.limit)}</td></tr>"
        for c in run.checks
    ]
    head = "<tr><th class=l></th><th class=l>check</th><th>found</th><th>limit</th></tr>"
    return _table(head, lines)


def _table(head: str, rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    return f"<div class=scroll><table><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def _loose(value: float | int | str | None) -> str:
    return text(number(value) if isinstance(value, float) else "–" if value is None else value)


def _listed(words: Sequence[str]) -> str:
    """A list for a sentence: a, b and c; long ones are cut."""
    if len(words) > NAMES_MAX:
        return ", ".join(words[: NAMES_MAX - 1]) + f" and {len(words) - NAMES_MAX + 1} others"
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def pct(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"  # never alone on the next line


def number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
