"""A sweep's results as a table of mean ± 95 % over seeds, and its curves as a vector picture.

Intervals are Student's t over the seeds, t(0.975, n - 1)·s/√n, s the sample standard deviation:
they say how well the mean over seeds is known, not how far single runs spread.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from node.errors import ConfigError, StorageError
from node.strict import nearest
from scenarios.sweep_tables import EVERY, ROUND_COLUMNS

_NOT_FIGURES: Final = ("run", "scenario", "engine", "failed", "trace_hash", "schedule_hash", "seed")
_CURVES: Final = tuple(name for name in ROUND_COLUMNS if name not in ("node", "round", "at"))


class Cell(Struct, frozen=True):
    """``half``: half the 95 % interval's width; None for one seed. ``n``: seeds with a value."""

    mean: float
    half: float | None
    n: int


class Results(Struct, frozen=True, kw_only=True):
    """A sweep's folder, read. ``varied``: dotted keys and their values in the file's order."""

    folder: Path
    runs: tuple[dict[str, str], ...]
    varied: dict[str, tuple[str, ...]]


class Table(Struct, frozen=True, kw_only=True):
    """Cells by (values of the row keys, values of the column keys)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    value: str
    row_values: tuple[tuple[str, ...], ...]
    column_values: tuple[tuple[str, ...], ...]
    cells: dict[tuple[tuple[str, ...], tuple[str, ...]], Cell]
    failed: int
    runs: int


def read_results(folder: Path) -> Results:
    """Raises ConfigError where ``folder`` holds no sweep, StorageError where it cannot be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
            runs = tuple(csv.DictReader(file))
        varied = {key: tuple(map(str, values)) for key, values in manifest["varied"].items()}
    except FileNotFoundError:
        raise ConfigError(f"{folder}: holds no results of a sweep (no runs.csv)") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder}: its manifest.json is not that of a sweep") from None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read: {error.strerror}") from None
    if not runs:
        raise ConfigError(f"{folder}: no run has finished yet")
    return Results(folder=folder, runs=runs, varied=varied)


def tabulate(results: Results, *, rows: Sequence[str], columns: Sequence[str], value: str) -> Table:
    """Mean ± 95 % of ``value`` over seeds. Raises ConfigError for names that are not there."""
    _check_keys(results, rows, columns)
    figures = [name for name in results.runs[0] if name not in (*_NOT_FIGURES, *results.varied)]
    if value not in figures:
        raise ConfigError(f"--value: no column '{value}' in runs.csv{nearest(value, figures)}")
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[float]] = defaultdict(list)
    for run in results.runs:
        measured = _figure(run[value])
        if measured is not None:
            found[_of(run, rows), _of(run, columns)].append(measured)
    return Table(
        rows=tuple(rows),
        columns=tuple(columns),
        value=value,
        row_values=_values(results, rows),
        column_values=_values(results, columns),
        cells={key: cell(values) for key, values in found.items()},
        failed=sum(run["ok"] != "True" for run in results.runs),
        runs=len(results.runs),
    )


def cell(values: Sequence[float]) -> Cell:
    """Mean and half the width of Student's 95 % interval over independent values."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Cell(mean, None, n)
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Cell(mean, float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)


def latex(table: Table) -> str:
    """A LaTeX tabular; the paper needs the package booktabs."""
    heads = [
        *map(_tex, table.rows),
        *(_tex(", ".join(v) or table.value) for v in table.column_values),
    ]
    lines = [
        f"% {table.value}: mean ± 95 % over seeds (Student's t)",
        rf"\begin{{tabular}}{{{'l' * len(table.rows)}{'r' * len(table.column_values)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for row in table.row_values:
        cells = [table.cells.get((row, column)) for column in table.column_values]
        shown = [f"${text(c).replace('±', chr(92) + 'pm')}$" if c else "--" for c in cells]
        lines.append(" & ".join([*map(_tex, row), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def text(found: Cell | None) -> str:
    """``0.9123 ± 0.0041``: as many digits as the interval has two of."""
    if found is None:
        return "–"
    if found.half is None:
        return f"{found.mean:.4g}"
    if found.half == 0:
        return f"{found.mean:.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(found.half)))
    return f"{found.mean:.{digits}f} ± {found.half:.{digits}f}"


def plot(results: Results, path: Path, *, rows: Sequence[str], curve: str) -> None:
    """Write ``curve`` over rounds as a vector picture: a line and its 95 % band for each group.

    Each seed's curve is the mean over its nodes. Raises ConfigError without matplotlib.
    """
    if curve not in _CURVES:
        raise ConfigError(f"--curve: no column '{curve}' in rounds.csv{nearest(curve, _CURVES)}")
    if path.suffix not in (".pdf", ".svg"):
        raise ConfigError(f"--plot: found '{path.name}', expected a name ending in .pdf or .svg")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError("--plot: needs matplotlib; install grapevine with [plots]") from None
    lines = _curves(results, rows, curve)
    if not lines:
        raise ConfigError(f"--curve: '{curve}' was not measured in any run")
    # type 42: text stays text, as journals ask; no date, so that the same data gives the same file
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "grapevine"}):
        figure = Figure(figsize=(5.0, 3.2), layout="constrained")
        axes = figure.subplots()
        for label, points in lines.items():
            at = [round_ for round_, _ in points]
            middle = [found.mean for _, found in points]
            (line,) = axes.plot(at, middle, label=label, linewidth=1.4)
            low = [found.mean - (found.half or 0.0) for _, found in points]
            high = [found.mean + (found.half or 0.0) for _, found in points]
            axes.fill_between(at, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_xlabel("round")
        axes.set_ylabel(curve)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize="small", title=", ".join(rows))
        try:
            date = "CreationDate" if path.suffix == ".pdf" else "Date"
            figure.savefig(path, metadata={date: None})
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from None


def _curves(results: Results, rows: Sequence[str], curve: str) -> dict[str, list[tuple[int, Cell]]]:
    every = curve.startswith("consensus")
    sums: dict[tuple[tuple[str, ...], int, str], list[float]] = defaultdict(list)
    for line in _rounds(results.folder):
        measured = _figure(line[curve])
        if measured is not None and (line["node"] == EVERY) == every:
            sums[_of(line, rows), int(line["round"]), line["run"]].append(measured)
    seeds: dict[tuple[tuple[str, ...], int], list[float]] = defaultdict(list)
    for (group, round_, _), values in sorted(sums.items()):
        seeds[group, round_].append(math.fsum(values) / len(values))
    lines: dict[str, list[tuple[int, Cell]]] = {}
    for group in _values(results, rows):
        points = [(r, cell(values)) for (g, r), values in sorted(seeds.items()) if g == group]
        if points:
            lines[", ".join(group)] = points
    return lines


def _rounds(folder: Path) -> Iterator[dict[str, str]]:
    try:
        with (folder / "rounds.csv").open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except OSError as error:
        raise StorageError(f"{folder}/rounds.csv: cannot be read: {error.strerror}") from None


def _check_keys(results: Results, rows: Sequence[str], columns: Sequence[str]) -> None:
    for option, keys in (("--rows", rows), ("--columns", columns)):
        for key in keys:
            if key not in results.varied:
                said = nearest(key, results.varied) if results.varied else "; nothing varies"
                raise ConfigError(f"{option}: '{key}' does not vary in {results.folder}{said}")
    named = [*rows, *columns]
    if len(set(named)) < len(named):
        raise ConfigError("--rows and --columns: a key stands twice")
    for key, values in results.varied.items():
        if key not in named and len(values) > 1:
            raise ConfigError(
                f"{results.folder}: the runs differ in '{key}' as well, which would be averaged "
                "over; name it in --rows or --columns"
            )


def _values(results: Results, keys: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every combination that was run, in the order of the sweep's file."""
    there = {_of(run, keys) for run in results.runs}

    def place(values: tuple[str, ...]) -> list[int]:
        known = [results.varied[key] for key in keys]
        return [k.index(v) if v in k else len(k) for k, v in zip(known, values, strict=True)]

    return tuple(sorted(there, key=lambda values: (place(values), values)))


def _of(row: dict[str, str], keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(row[key] for key in keys)


def _figure(written: str) -> float | None:
    if written in ("True", "False"):
        return float(written == "True")
    try:
        value = float(written)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _tex(words: Any) -> str:
    return "".join(f"\\{c}" if c in "_%&#${}" else c for c in str(words))
