"""`grapevine table`: mean ± 95 % over seeds, never over what differs otherwise; LaTeX; curves."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli.main import main
from node.errors import ConfigError
from scenarios.sweep_tables import ROUND_COLUMNS
from scenarios.table import Cell, cell, plot, read_results, tabulate, text

RULES = ("mean", "trimmed-mean")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two rules × two f × three seeds, as scenarios.sweep writes them."""
    folder = tmp_path / "results"
    folder.mkdir()
    varied = {"learning.rule": list(RULES), "learning.f": [0, 1]}
    (folder / "manifest.json").write_text(json.dumps({"varied": varied}))
    runs, rounds = [], []
    for a, rule in enumerate(RULES):
        for f in (0, 1):
            for seed in range(3):
                run = f"{a}{f}{seed}"
                ok, value = seed != 2, 0.5 + a / 10 + f / 100 + seed / 1000
                runs.append((rule, f, run, seed, ok, value, ""))
                for round_ in (1, 2, 3):
                    line = dict.fromkeys(ROUND_COLUMNS, "") | {"node": "n0", "round": round_}
                    line |= {"accuracy": value - 1 / round_}
                    rounds.append((run, seed, rule, f, *line.values()))
    heads = (*varied, "run", "seed", "ok", "accuracy_mean", "auroc_mean")
    for name, head, rows in (
        ("runs.csv", heads, runs),
        ("rounds.csv", ("run", "seed", *varied, *ROUND_COLUMNS), rounds),
    ):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    return folder


def test_the_interval_is_students_t() -> None:
    # t(0.975, 4) = 2.776445; the sample deviation of 1 … 5 is 1.581139
    found = cell([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.n) == (3.0, 5)
    assert found.half == pytest.approx(2.776445 * 1.581139 / 5**0.5, rel=1e-6)
    assert cell([0.25]) == Cell(0.25, None, 1), "one seed says nothing about others"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Cell(0.91234, 0.0041, 5), "0.9123 ± 0.0041"),
        (Cell(123.4, 17.0, 5), "123 ± 17"),
        (Cell(0.5, 0.0, 5), "0.5 ± 0"),
        (Cell(0.5, None, 1), "0.5"),
        (None, "–"),
    ],
)
def test_as_many_digits_as_the_interval_has_two_of(found: Cell | None, said: str) -> None:
    assert text(found) == said


def test_cells_are_over_seeds_in_the_order_of_the_file(results: Path) -> None:
    made = tabulate(
        read_results(results), rows=["learning.rule"], columns=["learning.f"], value="accuracy_mean"
    )
    assert made.row_values == (("mean",), ("trimmed-mean",))
    assert made.column_values == (("0",), ("1",))
    found = made.cells[("trimmed-mean",), ("1",)]
    assert found.mean == pytest.approx(0.611)
    assert found.n == 3
    assert made.failed == 4
    empty = tabulate(
        read_results(results), rows=["learning.rule"], columns=["learning.f"], value="auroc_mean"
    )
    assert empty.cells == {}


def test_the_command_prints_text_and_latex(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["table", str(results), "--rows", "learning.rule", "--columns", "learning.f"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "0.6110 ± 0.0025" in out
    assert "over 3 seeds" in out
    assert "4 of 12 runs failed a check" in out
    assert main([*command, "--latex"]) == 0
    assert r"mean & $0.5010 \pm 0.0025$ & $0.5110 \pm 0.0025$ \\" in capsys.readouterr().out
    assert main(["table", str(results)]) == 0, "without --rows: all that varies"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "learning.rul"], "did you mean 'learning.rule'"),
        (["--columns", "lerning.f"], "did you mean 'learning.f'"),
        (["--rows", "learning.rule"], "the runs differ in 'learning.f' as well"),
        (["--rows", "learning.f,learning.rule", "--columns", "learning.f"], "stands twice"),
        (["--value", "acuracy_mean"], "did you mean 'accuracy_mean'"),
        (["--plot", "x.pdf", "--curve", "acuracy"], "did you mean 'accuracy'"),
        (["--plot", "x.png"], "ending in .pdf or .svg"),
        (["--plot", "x.pdf", "--curve", "auroc"], "was not measured"),
    ],
)
def test_missing_columns_are_named(
    arguments: list[str], said: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", str(results), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no results"):
        read_results(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    (tmp_path / "runs.csv").write_text("")
    with pytest.raises(ConfigError, match="not that of a sweep"):
        read_results(tmp_path)
    (tmp_path / "manifest.json").write_text('{"varied": {}}')
    with pytest.raises(ConfigError, match="no run has finished"):
        read_results(tmp_path)


def test_curves_are_a_vector_picture_and_the_same_each_time(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, other = tmp_path / "a.pdf", tmp_path / "b.pdf"
    for path in (one, other):
        plot(read_results(results), path, rows=["learning.rule", "learning.f"], curve="accuracy")
    assert one.read_bytes().startswith(b"%PDF")
    assert b"/Subtype /Image" not in one.read_bytes()
    assert one.read_bytes() == other.read_bytes()


def test_without_matplotlib_the_extra_is_named(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"install grapevine with \[plots\]"):
        plot(read_results(results), Path("x.pdf"), rows=[], curve="accuracy")


def test_the_command_line_does_not_import_matplotlib() -> None:
    code = "import sys, node.cli.main; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
