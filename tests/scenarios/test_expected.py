"""[expect]: figures that a run will never have are refused before anything starts."""

from __future__ import annotations

import pytest

from node.errors import ConfigError
from scenarios.prepare import prepare
from scenarios.settings import parse_scenario

HEAD = """
name = "t"
topology = {{ kind = "ring", nodes = 6 }}
task = {{ name = "{task}"{more} }}
learning = {{ rounds = 10, local_steps = 2 }}
[expect]
"""


@pytest.mark.parametrize(
    ("task", "more", "text", "said"),
    [
        ("quadratic", "", "accuracy_min = 0.5", "'expect.accuracy_min': task 'quadratic' has no"),
        ("quadratic", "", "accuracy_mean_min = 0.5", "expect loss_max or consensus_distance_max"),
        ("quadratic", "", "own_accuracy_min = 0.5", "'expect.own_accuracy_min'"),
        ("quadratic", "", "auroc_min = 0.5", "'expect.auroc_min'"),
        ("quadratic", "", "pooled_gap_max = 0.5", "'expect.pooled_gap_max'"),
        ("quadratic", "", "local_gain_min = 0.5", "'expect.local_gain_min'"),
        ("quadratic", "", "class_accuracy_min = { 1 = 0.5 }", "'expect.class_accuracy_min'"),
        (
            "digits",
            "",
            "auroc_min = 0.5",
            "10 classes, and an AUROC is of two; expect accuracy_min",
        ),
        ("digits", "", "class_accuracy_min = { 10 = 0.5 }", "no class '10'; valid are 0, 1, 2"),
        ("digits", "", "class_accuracy_min = { 9 = 1.5 }", "expect.class_accuracy_min"),
        ("digits", "", "class_accuracy_min = {}", "names no class"),
        ("breast-cancer", "", "class_accuracy_min = { 2 = 0.5 }", "no class '2'"),
        ("digits", ", own_holdout = 0.0", "own_accuracy_min = 0.5", "task.own_holdout is 0"),
        ("digits", "", "acuracy_min = 0.5", "did you mean 'accuracy_min'"),
        ("digits", "", "f1_min = 0.5", "unknown key 'expect.f1_min'"),
        ("digits", "", "finished_min = 7", "'expect.finished_min': 7 of 6 nodes"),
        ("digits", "", "reconverged_within_rounds = 3", "no heal or restart to reconverge after"),
    ],
)
def test_a_figure_that_will_not_be_there_is_refused(
    task: str, more: str, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parse_scenario(HEAD.format(task=task, more=more) + text, source="t.toml")
    assert said in str(error.value)
    assert str(error.value).startswith("t.toml: ")
    assert "\n" not in str(error.value)


def test_figures_that_will_be_there_are_not() -> None:
    for task, text in (
        ("digits", "class_accuracy_min = { 0 = 0.5, 9 = 0.5 }\nown_accuracy_min = 0.5"),
        ("breast-cancer", "auroc_min = 0.9\npooled_gap_max = 0.1"),
        ("quadratic", "loss_max = 0.1\nconsensus_distance_max = 0.1"),
    ):
        parse_scenario(HEAD.format(task=task, more="") + text, source="t.toml")


def test_own_figures_of_a_node_without_own_rows_are_refused_once_the_rows_are_known() -> None:
    few = ', own_holdout = 0.02, split = { kind = "resample", per_node = 10 }'
    text = HEAD.format(task="digits", more=few) + "own_accuracy_min = 0.5"
    with pytest.raises(ConfigError, match=r"t.toml: .*own_accuracy_min': 'n0' has no held-out"):
        prepare(parse_scenario(text, source="t.toml"))


def test_what_is_wrong_with_the_data_names_the_file() -> None:
    text = HEAD.format(task="digits", more=', split = { kind = "resample" }')
    with pytest.raises(ConfigError, match=r"^t.toml: task.split: kind 'resample' needs"):
        prepare(parse_scenario(text, source="t.toml"))
