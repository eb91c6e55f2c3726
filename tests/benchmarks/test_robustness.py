"""What is published of robustness says what was measured: n, intervals, steps, whose networks, and what was flagged."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from capsnet.analysis.attacks.plot import plot_attacks
from capsnet.analysis.attacks.worst_case import Attacks, Ball, WorstCase
from capsnet.data import load_data
from tests.training import LEARNS, train

PROGRAMS = Path(__file__).parents[2] / "benchmarks"
WHERE = {"device": "Abacus", "cores": 2, "torch": "2.13.0", "commit": "0123456789", "command": "robustness.py runs/a"}
NETWORKS = {
    name: {"recipe": "fast", "parameters": 1234, "test": {"n": 10_000, "errors": k}, "weights_sha256": 8 * f"{k}"}
    for k, name in enumerate(("capsules", "plain"), 5)
}
SETTINGS = {"steps": (10, 20), "starts": 2, "start_steps": 50, "queries": 500}


@pytest.fixture
def program(monkeypatch, tmp_path):
    """The program that makes the tables, on an empty folder of results."""
    monkeypatch.syspath_prepend(PROGRAMS)
    program = import_module("tables")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    return program


def publish(root, kind, numbers):
    about = {"run": "capsules", "networks": NETWORKS, "seconds": 12.3, "environment": WHERE}
    folder = root / "results" / "robustness"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"capsules-{kind}.json").write_text(json.dumps(about | numbers))


@pytest.fixture
def attacked(tmp_path):
    """Two networks, of which PGD of 10 steps leaves one at 55 right that 20 steps have at 30."""

    def curve(name, norm, before, right):
        after = {"PGD-10": before, "PGD-20": right, "2 starts": right, "Square": right}
        return WorstCase(name, norm, 100, 99, (Ball(0.1, after),))

    curves = [
        curve(name, norm, before, right)
        for name, before, right in (("capsules", 10, 10), ("plain", 55, 30))
        for norm in ("Linf", "L2")
    ]
    path, _ = plot_attacks(Attacks(tuple(curves), SETTINGS), tmp_path / "attacks.png")
    publish(tmp_path, "attacks", json.loads(path.with_suffix(".json").read_text()))


@pytest.mark.usefixtures("attacked")
def test_the_table_of_attacks_says_worst_case_n_intervals_and_what_was_flagged(program):
    made = program.robustness()
    assert "Worst case over all attacks, image by image: an image counts as right only if every attack on it" in made
    assert "Worst case, Linf: accuracy in % of n = 100 test images" in made
    assert "| capsules | 99.0 [94.6, 99.8] | 10.0 [5.5, 17.4] | converged after 10 steps of PGD; passed all 3" in made
    checks = "FLAGGED by 1 of 3 checks: more steps (ε = 0.1): the accuracy may be too high"
    assert f"| plain | 99.0 [94.6, 99.8] | 30.0 [21.9, 39.6] | not converged after 20 steps of PGD; {checks} |" in made
    assert "| capsules | Linf | 0.1 | 10.0 | 10.0 | after 10 steps |" in made
    assert "| plain | Linf | 0.1 | 55.0 | 30.0 | **no** |" in made
    assert "- plain, Linf, more steps: FLAGGED (n = 100, ε = 0.1; PGD-10: 55 %, PGD-20: 30 %)" in made


@pytest.mark.usefixtures("attacked")
def test_tables_and_readme_name_the_networks_by_their_own_errors_and_weights(program):
    for made in (program.robustness(), program.robustness_in_short()):
        assert "capsules (recipe fast, 1,234 parameters, weights 55555555) has 5 errors on 10,000 test images" in made
        assert "plain (recipe fast, 1,234 parameters, weights 66666666) has 6 errors on 10,000 test images" in made


@pytest.mark.usefixtures("attacked")
def test_the_sentence_of_the_readme_says_what_was_flagged_and_whether_the_intervals_are_apart(program):
    made = program.robustness_in_short()
    assert "within ε = 0.1 (Linf, n = 100)" in made
    assert (
        "capsules has an accuracy of 10.0 [5.5, 17.4] % (converged after 10 steps of PGD; passed all 3 checks)" in made
    )
    assert (
        "plain has an accuracy of 30.0 [21.9, 39.6] % (not converged after 20 steps of PGD; FLAGGED by 1 of 3 checks"
        in made
    )
    assert "The intervals do not overlap: plain is better than capsules." in made
    assert "Of the ε tried (0.1), the intervals do not overlap at 0.1." in made


@pytest.mark.usefixtures("attacked")
def test_a_network_measured_alone_is_not_compared(program, tmp_path):
    path = tmp_path / "results" / "robustness" / "capsules-attacks.json"
    alone = json.loads(path.read_text())
    path.write_text(json.dumps(alone | {"curves": alone["curves"][:2]}))
    assert "No other network was measured for comparison." in program.robustness_in_short()


def test_overlapping_intervals_show_no_difference(program):
    assert program.difference({"a": (45, 50), "b": (47, 50)}).startswith("The intervals overlap")
    assert program.difference({"a": (45, 50)}) == ""


def test_what_was_not_measured_is_not_said(program):
    assert program.robustness_in_short() == ""
    assert program.robustness() == ""


def test_the_sentence_on_detection_has_n_and_steps(program, tmp_path):
    def group(name, epsilon, n, flagged):
        return {"name": name, "epsilon": epsilon, "tried": 20, "n": n, "flagged": flagged, "undetected": 0, "auc": 0.5}

    attacks = [group("FGSM", 0.1, 9, 9), group("PGD", 0.1, 10, 5), group("adaptive", 0.1, 12, 0)]
    suspects = [*attacks, group("noise", None, 9, 9)]
    clean = group("clean test images", None, 100, 5)
    numbers = {"threshold": 5.0, "percentile": 95.0, "steps": 77, "validation_n": 60}
    publish(tmp_path, "detection", numbers | {"clean": clean, "suspects": suspects})
    _, line = program.robustness_in_short().splitlines()
    assert "with which PGD of 77 steps fools capsules, 50.0 [23.7, 76.3] % at ε = 0.1 (n = 10)" in line
    assert "which knows the threshold (also 77 steps), 0.0 [0.0, 24.2] % at ε = 0.1 (n = 12)" in line
    assert "of clean test images, 5.0 [2.2, 11.2] % (n = 100)" in line
    assert "| PGD-77, ε = 0.1 | 20 | 10 | 50.0 [23.7, 76.3] |" in program.robustness()
    assert "take 77 steps from one random start" in program.robustness()


@pytest.mark.slow
def test_the_program_leaves_what_it_measured_with_whose_it_is_and_where(tmp_path, monkeypatch):
    run = train(tmp_path / "trained", replace(LEARNS, epochs=1), load_data("digits"))
    monkeypatch.syspath_prepend(PROGRAMS)
    program = import_module("robustness")
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    asked = ["--attacked", "3", "--images", "5", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["robustness.py", str(run.folder), *asked])
    program.main()
    for what in ("affine", "detection", "attacks"):
        kept = json.loads((tmp_path / f"trained-{what}.json").read_text())
        assert kept["environment"]["command"].endswith("--steps 2")
        assert kept["networks"]["trained"]["test"]["n"] == 360
        assert len(kept["networks"]["trained"]["weights_sha256"]) == 64
    assert kept["curves"][0]["n"] == 3
