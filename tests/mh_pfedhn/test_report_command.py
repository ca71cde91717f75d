"""`mh-pfedhn report` on one run, on several, and on a comparison."""

import json

import pytest
import yaml

from mh_pfedhn.cli import main


@pytest.fixture
def run_dirs(tmp_path, monkeypatch):
    """The folders of two runs, of method fedavg and of local, seen from the working folder."""
    monkeypatch.chdir(tmp_path)
    for method in ("fedavg", "local"):
        folder = tmp_path / method
        folder.mkdir()
        line = dict.fromkeys(("accuracy", "accuracy-mean", "accuracy-worst10"), 0.5) | {
            "round": 1,
            "accuracy-std": 0.0,
            "loss": 1.0,
            "train-loss": 1.0,
            "clients": 1,
            "failures": {},
            "bytes-down": 10,
            "bytes-up": 10,
            "seconds": {"generate": 0, "exchange": 1, "update": 0, "total": 1},
            "wall-seconds": 1.0,
            "client-accuracy": {},
            "client-train-loss": {},
            "failure-list": [],
        }
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "config.yaml").write_text(yaml.safe_dump({"method": method, "seed": 0, "num-rounds": 1}))
        (folder / "clients.csv").write_text("client\n")
    return ["fedavg", "local"]


def test_several_runs_are_drawn_onto_a_page_in_the_working_folder(run_dirs, tmp_path, capsys):
    assert main(["report", *run_dirs]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    assert "2 runs beside each other" in (tmp_path / "comparison.html").read_text()
    assert main(["report", *run_dirs, "--output", "other.html"]) == 0
    assert (tmp_path / "other.html").exists()
    assert not (tmp_path / "fedavg" / "report.html").exists()


def test_a_comparison_is_drawn_again(run_dirs, tmp_path, capsys):
    runs = [{"name": name, "method": name, "setting": "same", "seed": 0, "rounds": 1} for name in run_dirs]
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump({"name": "two", "runs": runs}))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'comparison.html'}\n"
    assert (tmp_path / "table.tex").exists()


def test_one_run_has_its_report_as_before(run_dirs, tmp_path, capsys):
    assert main(["report", "fedavg"]) == 0
    assert capsys.readouterr().out == "fedavg/report.html\n"


def test_a_comparison_is_drawn_by_itself(run_dirs, tmp_path, complaint):
    (tmp_path / "fedavg" / "comparison.yaml").write_text("runs: []")
    assert "fedavg is a comparison, which is drawn by itself" in complaint("report", *run_dirs)


def test_output_is_for_several_runs(run_dirs, complaint):
    assert "--output x.html is for several runs" in complaint("report", "fedavg", "--output", "x.html")


def test_a_page_that_cannot_be_written_is_a_sentence(run_dirs, complaint):
    assert "nowhere" in complaint("report", *run_dirs, "--output", "nowhere/x.html")


def test_a_file_of_somebody_else_is_not_written_over(run_dirs, tmp_path, complaint):
    (tmp_path / "comparison.html").write_text("mine")
    assert "name another file with --output" in complaint("report", *run_dirs)
    assert (tmp_path / "comparison.html").read_text() == "mine"
