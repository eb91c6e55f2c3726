"""The tables and pictures of speed are what the JSON says, and what was not measured is a dash."""

import json
from pathlib import Path

import pytest
from PIL import Image

from capsnet.benchmarks.goals import goals
from capsnet.benchmarks.pictures import draw
from capsnet.benchmarks.report import Table, goal_table, goals_by_device, machine, markdown, print_tables, tables

WHERE = {"device": "Abacus", "cores": 2, "torch": "2.13.0", "commit": "0123456789", "command": "routing.py"}
PAPER = {"b": 128, "i": 1152, "j": 10, "d": 8, "e": 16}
TIMES = {"forward_ms": 12.34, "backward_ms": 56.78}
ROUTING = {
    "environment": WHERE,
    "quick": False,
    "kind": "cpu",
    "shapes": [
        {
            "shape": PAPER,
            "dtype": "float32",
            "door": "streaming",
            "ways": {"textbook": TIMES | {"textbook_takes": 1.0}, "door": TIMES | {"textbook_takes": 4.25}},
            "floor_ms": 3.0,
        },
    ],
}
TRAINING = {
    "environment": WHERE,
    "quick": False,
    "kind": "cpu",
    "batch": 128,
    "flop": {"step": 1.2e9},
    "matrix_flops": {"float32": 1.8e11},
    "rows": [
        {"name": "textbook", "dtype": "float32", "images_per_second": 100.0, "times_textbook": 1.0, "share": 0.4},
        {"name": "ours", "dtype": "float32", "images_per_second": 360.0, "times_textbook": 3.6, "share": 0.79},
    ],
    "routing": {"ms": 8.0, "share": 0.05},
}
ACCURACY = {
    "environment": WHERE,
    "quick": False,
    "data": "mnist",
    "recipe": "fast",
    "validation_n": 5000,
    "marks": [{"accuracy": 0.99, "seconds": 71.5, "epoch": 2}, {"accuracy": 0.9965, "seconds": None, "epoch": None}],
    "epochs": [
        {"epoch": 1, "took": 40.0, "seconds": 40.0, "accuracy": 0.98},
        {"epoch": 2, "took": 31.5, "seconds": 71.5, "accuracy": 1.0},
    ],
    "test": {"n": 10_000, "errors": 60, "accuracy": 0.994},
}
ALL = {"routing": ROUTING, "training": TRAINING, "epoch_to_accuracy": ACCURACY}


def words(name, results):
    return "\n".join(map(markdown, tables(name, results)))


def test_a_table_has_the_figures_of_the_json():
    routing = words("routing", ROUTING)
    assert "| 128 · 1,152 · 10 · 8 · 16 | float32 | textbook | 12.3 | 56.8 | 1.00 x |" in routing
    assert "|  |  | door: streaming | 12.3 | 56.8 | 4.25 x |" in routing
    assert "|  |  | floor, both ways | 3.00 |  |  |" in routing
    assert "| ours | float32 | 360 | 3.60 x | 79 % |" in words("training", TRAINING)
    assert "| 99.00 % | 71.5 | 2 |" in words("epoch_to_accuracy", ACCURACY)
    assert "| 2 | 31.5 | 71.5 | 100.00 % |" in words("epoch_to_accuracy", ACCURACY)


def test_a_mark_that_was_not_reached_is_a_dash():
    assert "| 99.65 % | — | — |" in words("epoch_to_accuracy", ACCURACY)


def test_of_what_was_not_measured_yet_there_is_no_table():
    titles = [table.title for table in tables("routing", ROUTING)]
    assert len(titles) == 2
    assert titles[-1].startswith("Goals")


def test_a_goal_is_reached_missed_or_not_measured():
    held = {goal.measured: goal.held for goal in (*goals("routing", ROUTING), *goals("training", TRAINING))}
    assert held == {
        "4.2 x": True,
        "0.24 at 128 · 1,152 · 10 · 8 · 16": True,
        "3.6 x": True,
        "79 % in float32": False,
        "5.0 %": True,
        "—": None,
    }


def test_a_device_that_was_not_at_hand_is_a_dash_in_every_row():
    table = goals_by_device({"routing": {"cpu": ROUTING}, "training": {"cpu": TRAINING}})
    assert table.head[-1] == "GPU"
    assert {row[-1] for row in table.rows} == {"—"}
    assert "4.2 x, held" in {row[-2] for row in table.rows}


def test_a_missed_goal_reads_as_missed_in_the_readme_and_everywhere():
    missed = {"environment": WHERE, "quick": False, "routing": {"ms": 49.8, "share": 0.105}}
    rows = goals_by_device({"training": {"cpu": missed, "cuda": TRAINING}}).rows
    (row,) = [row for row in rows if row[0] == "routing's part of a training step"]
    assert row[1:] == ("at most 8 %", "**10.5 %, missed**", "5.0 %, held")
    verdicts = {row[0]: row[2:] for row in goal_table("training", missed).rows}
    assert verdicts["routing's part of a training step"] == ("10.5 %", "missed")
    assert verdicts["`capsnet --help`"] == ("—", "not run")


def worst_goal(results):
    (goal,) = [goal for goal in goals("routing", results) if "worst" in goal.what]
    return goal.measured, goal.held


def test_the_worst_shape_is_the_worst_of_all_that_were_timed():
    listed = {"n": 2, "left_out": 0, "each": [{"shape": [3, 1, 1], "door_takes": t} for t in (0.9, 1.05)]}
    listed["worst"] = listed["each"][1]
    assert worst_goal({"listed": listed}) == ("1.05 at 3 · 1 · 1", True)
    slow = ROUTING["shapes"][0] | {"ways": {"textbook": TIMES, "door": TIMES | {"textbook_takes": 0.8}}}
    assert worst_goal({"listed": listed, "shapes": [slow]}) == ("1.25 at 128 · 1,152 · 10 · 8 · 16", False)
    unknown = slow | {"ways": {"door": TIMES | {"textbook_takes": None}}}
    assert worst_goal({"shapes": [unknown]}) == ("—", None)


def test_the_published_worst_shape_is_the_maximum_over_the_json():
    path = Path(__file__).parents[2] / "results" / "routing" / "cpu.json"
    results = json.loads(path.read_text())
    takes = [one["door_takes"] for one in results["listed"]["each"]]
    takes += [1 / one["ways"]["door"]["textbook_takes"] for one in results["shapes"]]
    (goal,) = [goal for goal in goals("routing", results) if "worst" in goal.what]
    assert goal.measured.startswith(f"{max(takes):.2f} at ")
    assert goal.held == (max(takes) <= 1.1)
    assert f"| {goal.mark} |" in (Path(__file__).parents[2] / "README.md").read_text()


def test_the_machine_stands_above_the_figures_and_quick_ones_say_that_they_are():
    assert machine(ROUTING) == "Abacus, 2 cores, torch 2.13.0, commit 0123456; `routing.py`"
    quick = ROUTING | {"quick": True}
    assert machine(quick).endswith("quick: the sizes are too small for figures to go by")
    assert not any(table.title.startswith("Goals") for table in tables("routing", quick))


def test_markdown_has_a_row_a_row():
    assert markdown(Table("T", ("a", "b"), [("1", "2")])) == "T\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"


@pytest.mark.parametrize("name", ALL)
def test_the_terminal_shows_the_same_figures(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_tables(name, ALL[name])
    shown = capsys.readouterr().out
    for table in tables(name, ALL[name]):
        assert table.title in shown
        assert all(cell in shown for row in table.rows for cell in row)


@pytest.mark.parametrize("name", ALL)
def test_a_picture_is_drawn_of_each(name, tmp_path):
    with Image.open(draw(name, ALL[name], tmp_path / "picture.png")) as picture:
        assert picture.format == "PNG"


def test_the_readme_and_the_results_are_made_from_the_json(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import tables as program

    monkeypatch.setattr(program, "ROOT", tmp_path)
    assert "3.6 x" not in program.speed_in_short(program.speed())
    (tmp_path / "results" / "training").mkdir(parents=True)
    (tmp_path / "results" / "training" / "cpu.json").write_text(json.dumps(TRAINING))
    measured = program.speed()
    assert "| ours | float32 | 360 | 3.60 x | 79 % |" in program.speed_in_short(measured)
    assert "8.0 ms, 5.0 % of it" in program.speed_in_full(measured)
    assert program.between("a<!-- x -->\nold<!-- /x -->b", "x", "new\n") == "a<!-- x -->\nnew\n<!-- /x -->b"
