"""The tables and plots of speed are what the JSON says, and what was not measured is a dash."""

import json
from pathlib import Path

import pytest
from PIL import Image

import tables as program
from goals import GOALS, KINDS, verdicts
from report import Table, goal_table, goals_by_device, machine, markdown, plot, print_tables

BENCHMARKS = {benchmark.name: benchmark for benchmark in program.BENCHMARKS}
RESULTS = Path(__file__).parents[2] / "results"
WHERE = {"device": "Abacus", "cores": 2, "torch": "2.13.0", "commit": "0123456789", "command": "routing.py"}
PAPER = {"b": 128, "i": 1152, "j": 10, "d": 8, "e": 16}
TIMES = {"forward_ms": 12.34, "backward_ms": 56.78}
ROUTING = {
    "environment": WHERE,
    "quick": False,
    "kind": "cpu-float32",
    "shapes": [
        {
            "shape": PAPER,
            "dtype": "float32",
            "chosen": "streaming",
            "implementations": {"naive": TIMES | {"speedup": 1.0}, "auto": TIMES | {"speedup": 4.25}},
            "roofline_ms": 3.0,
        },
    ],
    "listed": {
        "n": 13,
        "left_out": 0,
        "rounds": 5,
        "each": [{"shape": [3, 1, j, 8, 16], "relative_time": 1 + j / 100} for j in range(13)],
        "again": [{"shape": [3, 1, j, 8, 16], "relative_time": 1 + j / 200} for j in range(12, 2, -1)],
    },
}
TRAINING = {
    "environment": WHERE,
    "quick": False,
    "kind": "cpu-float32",
    "batch_size": 128,
    "flop": {"step": 1.2e9},
    "gemm_flops": {"float32": 1.8e11},
    "rows": [
        {"name": "naive PyTorch", "dtype": "float32", "images_per_second": 100.0, "speedup": 1.0, "gemm_share": 0.4},
        {"name": "capsnet", "dtype": "float32", "images_per_second": 360.0, "speedup": 6.6, "gemm_share": 0.79},
    ],
    "routing": [
        {"dtype": "float32", "gradient": "all", "ms": 8.0, "step_ms": 160.0, "share": 0.05},
        {"dtype": "float32", "gradient": "last", "ms": 4.0, "step_ms": 150.0, "share": 0.027},
        {"dtype": "bfloat16", "gradient": "all", "ms": 11.0, "step_ms": 100.0, "share": 0.11},
    ],
    "memory": {"naive": 3 << 30, "capsnet": 1 << 30, "attack": 1 << 29, "attack_images": 100},
    "first_step": {"empty": 3.5, "filled": 1.5},
}
COMPILED = {"name": "compiled", "dtype": "float32", "default": False, "images_per_second": 400.0}
COMPILED |= {"speedup": 7.3, "gemm_share": 0.9}
ACCURACY = {
    "environment": WHERE,
    "quick": False,
    "kind": "cpu-bf16",
    "data": "mnist",
    "recipe": "fast",
    "validation_n": 5000,
    "targets": [{"accuracy": 0.99, "seconds": 71.5, "epoch": 2}, {"accuracy": 0.9965, "seconds": None, "epoch": None}],
    "epochs": [
        {"epoch": 1, "took": 70.0, "seconds": 40.0, "accuracy": 0.98},
        {"epoch": 2, "took": 31.5, "seconds": 71.5, "accuracy": 1.0},
    ],
    "test": {"n": 10_000, "errors": 60, "accuracy": 0.994},
}
CONVOLVED = {"channels": 64, "kernels": 32, "size": 20, "kernel_size": 9, "stride": 2, "dtype": "bfloat16"}
CONVOLUTION = {
    "environment": WHERE,
    "quick": False,
    "kind": "cpu-bf16",
    "rows": [
        CONVOLVED | {"images": n, "training": training, "ms": {"direct": n, "fourier": n / 2 + 8}, "chosen": chosen}
        for n, chosen in ((1, "direct"), (16, "direct"), (128, "fourier"))
        for training in (True, False)
    ],
    "errors": [
        CONVOLVED
        | {"images": 32, "size": [20, 10], "kernel_size": [9, 3]}
        | {"direct": dict.fromkeys(("values", "images", "weight"), 2e-3)}
        | {"fourier": {"values": 1e-3, "images": 2e-3, "weight": 3e-3}}
    ],
}
DEMO = {"training_seconds": 19.6, "test": {"accuracy": 0.99, "errors": 4, "n": 360}, "environment": WHERE}
ALL = {"routing": ROUTING, "training": TRAINING, "epoch_to_accuracy": ACCURACY, "convolution": CONVOLUTION}


def words(name, results):
    return "\n".join(map(markdown, BENCHMARKS[name].tables(results)))


def test_a_table_has_the_figures_of_the_json():
    routing = words("routing", ROUTING)
    assert "| 128 · 1,152 · 10 · 8 · 16 | float32 | naive PyTorch | 12.3 | 56.8 | 1.00 x |" in routing
    assert "|  |  | auto (streaming) | 12.3 | 56.8 | 4.25 x |" in routing
    assert "|  |  | roofline, forward and backward | 3.00 |  |  |" in routing
    training = words("training", TRAINING)
    assert "| capsnet | float32 | 360 | 6.60 x | 79 % |" in training
    assert "| float32 | last | 4.00 | 150.0 | 2.7 % |" in training
    assert "gradients and Adam's state: naive PyTorch | 3,072 MiB |" in training
    assert "| memory of an attack's gradient for 100 images, with the frozen network | 512 MiB |" in training
    assert "the end of its first step, empty caches | 3.50 s |" in training
    assert "| 13 | 1.00 | 1.06 | 1.04 | 1.06 | 3 · 1 · 12 · 8 · 16 |" in routing
    convolution = words("convolution", CONVOLUTION)
    assert (
        "| 64 → 32, 20 / 9 / 2 | bfloat16 | 16.0 | 16.0 | direct | 128.0 | 72.0 | fourier |\n\n" in convolution + "\n"
    )
    assert "| 32 x 64 → 32, 20x10 / 9x3 / 2 | bfloat16 | 0.50 x (2.0e-03) | 1.00 x (2.0e-03) | 1.50 x" in convolution
    assert "| 99.00 % | 71.5 | 2 |" in words("epoch_to_accuracy", ACCURACY)
    assert "| 2 | 31.5 | 71.5 | 100.00 % |" in words("epoch_to_accuracy", ACCURACY)


def test_a_target_that_was_not_reached_is_a_dash():
    assert "| 99.65 % | — | — |" in words("epoch_to_accuracy", ACCURACY)


def test_of_what_was_not_measured_yet_there_is_no_table():
    known = {name: of for name, of in ROUTING.items() if name != "listed"}
    titles = [table.title for table in BENCHMARKS["routing"].tables(known)]
    assert len(titles) == 2
    assert titles[-1].startswith("Goals")


def test_a_goal_is_met_missed_or_not_measured():
    found = [verdict for name, of in ALL.items() if name in GOALS for verdict in verdicts(name, of)]
    met = {verdict.measured: verdict.met for verdict in (*found, *verdicts("demo", DEMO))}
    assert met == {
        "4.2 x": True,
        "1.04": True,
        "6.6 x in float32": True,
        "79 % in float32": False,
        "5.0 %": True,
        "11.0 %": False,
        "3.50 s": False,
        "1.50 s": True,
        "31.5 s": True,
        "20 s, 99.00 %": True,
        "—": None,
    }


def verdict(name, words, results):
    (found,) = [one for one in verdicts(name, results) if words in one.what]
    return found.met


@pytest.mark.parametrize(
    ("kind", "dtype", "speedup", "share", "met"),
    [
        ("cpu-bf16", "bfloat16", 7.0, 1.25, True),
        ("cpu-bf16", "bfloat16", 6.9, 1.24, False),
        ("cpu-float32", "float32", 6.5, 0.8, True),
        ("cpu-float32", "float32", 6.4, 0.79, False),
        ("cuda", "bfloat16", 7.0, 0.65, True),
        ("cuda", "bfloat16", 6.9, 0.64, False),
    ],
)
def test_the_goals_of_training_depend_on_the_dtype_and_the_kind_of_machine(kind, dtype, speedup, share, met):
    row = {"name": "capsnet", "dtype": dtype, "images_per_second": 1000.0, "speedup": speedup, "gemm_share": share}
    results = {"kind": kind, "rows": [row]}
    assert verdict("training", "over naive PyTorch", results) is met
    assert verdict("training", "FLOP/s, counted for direct", results) is met
    assert verdict("training", "on a GPU", results) is (False if kind == "cuda" else None)


@pytest.mark.parametrize(("kind", "seconds"), [("cpu-bf16", 60), ("cpu-float32", 180)])
def test_the_goal_of_an_epoch_depends_on_the_kind_of_machine(kind, seconds):
    for took, met in ((seconds, True), (seconds + 1, False)):
        epochs = [{"took": 999}, {"took": took}, {"took": 0}, {"took": 999}]
        assert verdict("epoch_to_accuracy", "MNIST", {"data": "mnist", "kind": kind, "epochs": epochs}) is met
    assert verdict("epoch_to_accuracy", "MNIST", {"data": "digits", "kind": kind, "epochs": epochs}) is None


def test_what_is_off_by_default_does_not_count_as_the_packages_speed():
    more = TRAINING | {"rows": [*TRAINING["rows"], COMPILED]}
    assert verdicts("training", more) == verdicts("training", TRAINING)
    assert "| compiled | float32 | 400 | 7.30 x | 90 % |" in words("training", more)


def test_each_kind_of_machine_that_was_measured_has_a_column_and_a_gpu_always_has():
    table = goals_by_device({"routing": {"cpu-float32": ROUTING}, "training": {"cpu-float32": TRAINING}})
    assert table.head == ("what", "goal", "CPU without bf16: Abacus", "GPU")
    assert {row[-1] for row in table.rows} == {"—"}
    assert "4.2 x, met" in {row[-2] for row in table.rows}
    other = {"environment": WHERE | {"device": "Babbage"}}
    both = goals_by_device(
        {"training": {"cpu-float32": TRAINING, "cpu-bf16": TRAINING | other}, "demo": {"cuda": DEMO}}
    )
    assert both.head[2:] == ("CPU with bf16: Babbage", "CPU without bf16: Abacus", "GPU: Abacus")
    assert len(both.rows) == sum(map(len, GOALS.values()))


def test_a_missed_goal_reads_as_missed_in_every_table():
    share = {"dtype": "float32", "gradient": "all", "ms": 49.8, "share": 0.105}
    missed = {"environment": WHERE, "quick": False, "kind": "cpu-bf16", "routing": [share]}
    rows = goals_by_device({"training": {"cpu-bf16": missed, "cuda": TRAINING}}).rows
    (row,) = [row for row in rows if row[0] == "routing's part of a training step in float32"]
    assert row[1:] == ("at most 8 %", "**10.5 %, missed**", "5.0 %, met")
    rows = {row[0]: row[2:] for row in goal_table("training", missed).rows}
    assert rows["routing's part of a training step in float32"] == ("10.5 %", "missed")
    assert rows["`capsnet --help`"] == ("—", "not run")


def test_the_ten_slowest_shapes_count_with_their_second_times():
    each = [{"shape": [3, 1, 1], "relative_time": 9.0}]
    again = [{"shape": [3, 1, 1], "relative_time": of} for of in (9.0, 1.06, 1.0)]
    twice, once = {"listed": {"each": each, "again": again}}, {"listed": {"each": each}}
    (found,) = [one for one in verdicts("routing", twice) if "slowest" in one.what]
    assert (found.measured, found.met) == ("1.06", False)
    assert verdict("routing", "slowest", once) is None


@pytest.mark.parametrize("name", ALL)
def test_published_results_lie_under_their_kind_of_machine_and_are_not_quick(name):
    for path in (RESULTS / name).glob("*"):
        results = json.loads(path.read_text())
        assert results["kind"] == path.stem
        assert path.stem in KINDS
        assert not results["quick"]


def test_the_machine_is_named_above_the_results_and_quick_ones_say_that_they_are():
    assert machine(ROUTING) == "Abacus, 2 cores, torch 2.13.0, commit 0123456; `routing.py`"
    quick = ROUTING | {"quick": True}
    assert machine(quick).endswith("quick: the sizes are too small to conclude anything")
    assert not any(table.title.startswith("Goals") for table in BENCHMARKS["routing"].tables(quick))


def test_markdown_has_a_row_a_row():
    assert markdown(Table("T", ("a", "b"), [("1", "2")])) == "T\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"


@pytest.mark.parametrize("name", ALL)
def test_the_terminal_shows_the_same_numbers(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_tables(BENCHMARKS[name], ALL[name])
    shown = capsys.readouterr().out
    for table in BENCHMARKS[name].tables(ALL[name]):
        assert table.title in shown
        assert all(cell in shown for row in table.rows for cell in row)


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.plot])
def test_each_can_be_plotted(name, tmp_path):
    with Image.open(plot(BENCHMARKS[name], ALL[name], tmp_path / "picture.png")) as picture:
        assert picture.format == "PNG"


def test_the_readme_and_the_results_are_made_from_the_json(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "ROOT", tmp_path)
    assert program.speed_in_short(program.speed()) == ""
    slow = TRAINING | {"rows": TRAINING["rows"][:1]}
    for name, kind, results in (
        *(("training", "cpu-bf16", TRAINING), ("training", "cpu-float32", slow)),
        *(("epoch_to_accuracy", "cpu-bf16", ACCURACY), ("convolution", "cpu-bf16", CONVOLUTION)),
    ):
        (tmp_path / "results" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / name / f"{kind}.json").write_text(json.dumps(results))
    for seed, seconds in enumerate((10.0, 19.6, 30.0)):
        run = DEMO | {"training_seconds": seconds, "recipe": "digits"}
        run["environment"] = WHERE | {"torch": "2.13.0+cpu", "precision": "bf16-mixed"}
        (tmp_path / "results" / f"digits-{seed}.json").write_text(json.dumps(run))
    measured = program.speed()
    short = " ".join(program.speed_in_short(measured).split())
    assert short == (
        "On 2 cores of an Abacus (CPU with bf16, torch 2.13.0) training in float32 reaches 360 images/s at batch size "
        "128, 6.6 times naive PyTorch's in float32; an epoch of MNIST takes 32 s; the first step ends 1.5 s after the "
        "command (3.5 s the first time). Of the 8 goals measured there, 5 are met and 3 are missed. "
        "![Training speed, from naive PyTorch to capsnet train](docs/training-cpu-bf16.png)"
    )
    full = program.speed_in_full(measured)
    assert "| float32 | all | 8.00 | 160.0 | 5.0 % |" in full
    assert "| 20 s, 99.00 %, met | — | — |" in full
    assert "## Training and prediction, step by step: CPU without bf16\nAbacus, 2 cores" in full
    assert "## Direct and Fourier convolution: CPU with bf16\nAbacus, 2 cores" in full
    assert program.between("a<!-- x -->\nold<!-- /x -->b", "x", "new\n") == "a<!-- x -->\nnew\n<!-- /x -->b"
