"""The page and the plots, rebuilt from the files of small runs."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from common.errors import UserError
from common.evaluation import Evaluation
from server_app import report
from server_app.report import format_bytes, format_duration, read_run, write_report
from server_app.tracking import Failure, RoundRecord, RunTracker

CONFIG = {"run-name": "small", "method": "mh-pfedhn", "dataset": "cifar10", "num-rounds": 3, "seed": 11}
SECONDS = {"generate": 0.5, "exchange": 2.0, "update": 1.0, "total": 4.0}


class Page(HTMLParser):
    """Collects what the page refers to, its image texts, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.alternatives, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.references += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.alternatives.append(attributes["alt"])

    def handle_data(self, data):
        self.text += data + " "


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Returns a function that leaves the folder of a run, without the page."""

    def make(keys=("a", "b"), rounds=3, finish=True, evaluate=True, failures=(), class_names=("cat", "dog")):
        monkeypatch.setattr("server_app.tracking.write_report", lambda run_dir: None)
        tracker = RunTracker(tmp_path / "run", CONFIG, num_rounds=3)
        for index, key in enumerate(keys):
            tracker.add_client(key, 239_856 + index, 79, ("lenet", "mlp")[index % 2])
        if class_names:
            tracker.set_class_counts({key: list(range(len(class_names))) for key in keys}, class_names)
        for number in range(1, rounds + 1):
            evaluations = {key: Evaluation(number % 3 + index, 1000, 1.0) for index, key in enumerate(keys)}
            tracker.log_round(
                RoundRecord(
                    number,
                    evaluations if evaluate else {},
                    {key: (2.0, 20) for key in keys},
                    list(failures),
                    1_500_000,
                    750_000,
                    dict(SECONDS),
                )
            )
        if finish:
            tracker.finish()
        return tracker.run_dir

    return make


@pytest.fixture
def make_adapt_run(tmp_path, monkeypatch):
    """Returns a function that leaves the folder of a run of two rounds in which k and l are known, a, b and c new."""

    def make(evaluated="abckl", known="kl", **changes):
        monkeypatch.setattr("server_app.tracking.write_report", lambda run_dir: None)
        tracker = RunTracker(tmp_path / "run", CONFIG | {"mode": "adapt", "num-rounds": 2}, num_rounds=2)
        for key, architecture in {"k": "vgg8", "a": "lenet", "b": "mlp", "c": "lenet", "l": "lenet"}.items():
            tracker.add_client(key, 1000, 2, architecture, known=key in known)
        for number, correct in enumerate([(2, 4, 6, 90, 60), (4, 8, 12, 90, 72)], start=1):
            evaluations = {
                key: Evaluation(right, total, 1.0)
                for key, right, total in zip("abckl", correct, (20, 20, 20, 100, 100), strict=True)
                if key in evaluated
            }
            tracker.log_round(RoundRecord(number, evaluations, {"a": (2.0, 20)}, seconds=dict(SECONDS), **changes))
        tracker.finish()
        return tracker.run_dir

    return make


def page_of(run_dir):
    return Page(write_report(run_dir).read_text())


def test_page_has_the_headline_numbers(make_run):
    run_dir = make_run(failures=[Failure("b", "late", "no reply within 5 s")])
    assert write_report(run_dir) == run_dir / "report.html"
    text = " ".join(page_of(run_dir).text.split())
    for expected in (
        "mh-pfedhn on cifar10, 2 clients",
        "Best accuracy 0.003 round 2",  # (2 + 3) of 2000
        "Last accuracy 0.001 round 3",
        "Rounds 3 of 3 finished",
        "Sent to clients 4.5 MB 1.5 MB a round",
        "Received 2.25 MB 750 kB a round",
        "generate 0.5 s, exchange 2.0 s",
        "late 3 b (3 times) round 3, client b: no reply within 5 s",
        "seed 11",
    ):
        assert expected in text


def test_page_is_one_self_contained_file(make_run):
    run_dir = make_run()
    page = page_of(run_dir)
    assert len(page.alternatives) == 3
    assert all(len(text) > 20 for text in page.alternatives)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert ("html", {"lang": "en"}) in page.tags
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|@import|url\(", (run_dir / "report.html").read_text())


def test_curves_are_a_readable_image(make_run):
    run_dir = make_run()
    write_report(run_dir)
    with Image.open(run_dir / "curves.png") as image:
        assert image.width >= 900
        assert image.height >= 900


def test_names_from_outside_are_escaped(make_run):
    hostile = "<script>alert('x')</script>"
    run_dir = make_run(keys=(hostile, "$\\frac{"), failures=[Failure(hostile, "late", "<img src=x>")])
    page = page_of(run_dir)
    assert "script" not in {tag for tag, _ in page.tags}
    assert len(page.alternatives) == 3
    assert hostile in page.text
    assert "<img src=x>" in page.text


def test_unfinished_run_says_so_and_reloads_itself(make_run):
    page = page_of(make_run(rounds=2, finish=False))
    assert "This run has not finished" in page.text
    assert "2 of 3" in page.text
    assert ("meta", {"http-equiv": "refresh", "content": "15"}) in page.tags


def test_finished_run_does_not_reload_itself(make_run):
    page = page_of(make_run())
    assert "not finished" not in page.text
    assert "refresh" not in {attributes.get("http-equiv") for _, attributes in page.tags}


def test_run_without_evaluation_or_partition(make_run):
    page = page_of(make_run(evaluate=False, class_names=(), rounds=1, finish=False))
    assert "not evaluated yet" in page.text
    assert len(page.alternatives) == 2


def test_many_clients_architectures_and_classes(make_run):
    run_dir = make_run(
        keys=[f"client-{i}" for i in range(200)], rounds=1, class_names=[f"class {i}" for i in range(100)]
    )
    assert "client-199" in page_of(run_dir).text


def test_architectures_are_means_over_their_clients(make_run):
    lenet, mlp = read_run(make_run(keys=("a", "b", "c"))).architectures()
    assert (lenet.architecture, lenet.clients, lenet.num_params, lenet.chunks) == (
        "lenet",
        2,
        "239,856 to 239,858",
        "79",
    )
    # Round 2 is best, with 2 and 4 of 1000 right; round 3 is last, with 0 and 2.
    assert (lenet.best_accuracy, lenet.last_accuracy) == (pytest.approx(0.003), pytest.approx(0.001))
    assert (mlp.best_accuracy, mlp.last_accuracy) == (0.003, 0.001)


def test_accuracies_of_an_architecture_skip_rounds_without_its_clients(make_run):
    run_dir = make_run()
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]["client-accuracy"]["b"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(run_dir).accuracies("mlp") == [(1, [0.002]), (3, [0.001])]


def lines_of(axes):
    """The curves of a plot as (colour, style, values); a line of no points is left out."""
    lines = [(line.get_color(), line.get_linestyle(), list(line.get_ydata())) for line in axes.lines]
    return [(colour, style, pytest.approx(values)) for colour, style, values in lines if values]


def legend_of(axes):
    return {
        text.get_text(): line.get_linestyle()
        for text, line in zip(axes.get_legend().get_texts(), axes.get_legend().legend_handles, strict=True)
    }


def test_new_and_known_clients_have_rows_of_their_own(make_adapt_run):
    rows = read_run(make_adapt_run()).architectures()
    assert [(row.architecture, row.clients, row.last_accuracy, row.best_accuracy) for row in rows] == [
        ("lenet", 2, pytest.approx(0.4), pytest.approx(0.4)),  # 4 and 12 of 20
        ("mlp", 1, 0.4, 0.4),
        ("vgg8 (known)", 1, 0.9, 0.9),
        ("lenet (known)", 1, 0.72, 0.72),
    ]


def test_known_clients_are_a_dashed_line_and_no_part_of_the_solid_ones(make_adapt_run):
    top, _ = report._draw_curves(read_run(make_adapt_run())).axes
    lenet, mlp, *_ = report._COLOURS
    best = ("#f2c14e", "-", [0.4])
    assert lines_of(top) == [
        (lenet, "-", [0.2, 0.4]),  # of a and c: 2 and 6, then 4 and 12 of 20
        (mlp, "-", [0.2, 0.4]),
        ("black", "-", [0.2, 0.4]),
        ("black", "--", [0.75, 0.81]),  # 150, then 162 of 200
        best,
    ]
    assert legend_of(top) == {
        "all new clients, by test samples": "-",
        "best: 0.400 in round 2": "None",
        "all known clients, by test samples": "--",
        "lenet, new": "-",
        "mlp, new": "-",
        "band: 10th to 90th percentile of new clients": "solid",
    }


def test_ordinary_run_has_no_dashed_line(make_run):
    top, bottom = report._draw_curves(read_run(make_run())).axes
    assert {style for _, style, _ in lines_of(top)} == {"-"}
    assert list(legend_of(top)) == ["all clients, by test samples", "best: 0.003 in round 2", "lenet", "mlp"]
    assert list(legend_of(bottom)) == ["local training, by training samples", "test, by test samples"]


def test_known_clients_are_drawn_though_no_new_one_was_evaluated(make_adapt_run):
    run_dir = make_adapt_run(evaluated="kl")
    top, _ = report._draw_curves(read_run(run_dir)).axes
    assert lines_of(top) == [("black", "--", [0.75, 0.81])]
    assert not top.texts
    assert report.final_table(run_dir).splitlines()[-2:] == [
        "no new client was evaluated",
        "over all test samples of known clients: last accuracy 0.810",
    ]
    assert [row.last_accuracy for row in read_run(run_dir).architectures()] == [None, None, 0.9, 0.72]
    assert "Last accuracy of new clients – not evaluated yet" in " ".join(page_of(run_dir).text.split())


def test_loss_of_the_global_model_is_drawn_where_there_is_one(make_adapt_run):
    run_dir = make_adapt_run(global_losses={"a": (1.0, 30), "b": (3.0, 10)})
    _, bottom = report._draw_curves(read_run(run_dir)).axes
    assert [list(line.get_ydata()) for line in bottom.lines] == [[2.0, 2.0], [1.0, 1.0], [1.5, 1.5]]
    assert list(legend_of(bottom)) == [
        "local training, by training samples",
        "test, by test samples of new clients",
        "global model, by training samples",
    ]


def test_page_of_an_adapt_run_says_which_clients_are_new(make_adapt_run):
    text = " ".join(page_of(make_adapt_run()).text.split())
    for expected in (
        "mh-pfedhn on cifar10, 5 clients. Mode adapt: what the hypernetwork learned in training is frozen; new clients "
        "(3 here) get embeddings of their own, clients known from training (2 here) are only evaluated.",
        "Last accuracy of new clients 0.400 round 2; known clients 0.810",
        "Solid lines are of new clients, the dashed line is of known ones.",
        "lenet (known) 1 0.720 0.720",
        "all new 3 0.400 0.400",
        "k vgg8 known 0.900",
        "a lenet new 0.200",
    ):
        assert expected in text


def test_page_of_an_adapt_run_without_known_clients_names_the_mode(make_adapt_run):
    text = " ".join(page_of(make_adapt_run(known="")).text.split())
    assert "5 clients. Mode adapt:" in text
    assert "(0 here) are only evaluated" in text
    assert "dashed" not in text


def test_page_of_an_ordinary_run_speaks_of_no_mode_and_no_known_clients(make_run):
    text = page_of(make_run()).text
    assert not re.search(r"adapt|[Kk]nown|new clients|dashed", text)


def test_page_tells_epsilon_only_where_something_was_noised(make_run):
    run_dir = make_run()
    assert "psilon" not in Page(write_report(run_dir).read_text()).text
    rows = (run_dir / "clients.csv").read_text().splitlines()
    columns = rows[0].split(",")
    cells = rows[1].split(",")
    cells[columns.index("epsilon")], cells[columns.index("delta")] = "3.25", "1e-05"
    (run_dir / "clients.csv").write_text("\n".join([rows[0], ",".join(cells), *rows[2:]]) + "\n")
    text = " ".join(Page(write_report(run_dir).read_text()).text.split())
    assert "Differential privacy ε 3.25 δ 1e-05, of all deltas sent; the worst of 1 clients that add noise" in text
    assert "Epsilon" in text


def test_more_architectures_than_colours_are_still_drawn(make_run, monkeypatch):
    monkeypatch.setattr(report, "_COLOURS", ("#3b6fb6",))
    assert write_report(make_run()).exists()


def test_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"metrics\.jsonl is empty"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [('{"round": 2, "accu', "is not JSON"), ("[1, 2]", "no `round`"), ('{"round": 2}', "no `accuracy`")],
)
def test_broken_line_is_named(make_run, broken, problem):
    run_dir = make_run()
    path = run_dir / "metrics.jsonl"
    first, _, third = path.read_text().splitlines()
    path.write_text("\n".join([first, broken, third]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 ") as error:
        write_report(run_dir)
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["config.yaml", "clients.csv"])
def test_missing_file_is_named(make_run, name):
    run_dir = make_run()
    (run_dir / name).unlink()
    with pytest.raises(UserError, match=re.escape(f"{name} is missing")):
        write_report(run_dir)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    path.write_bytes(b"old")

    def fail(source, target):
        raise OSError("interrupted")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="interrupted"):
        report.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (4.06, "4.1 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (118, "1 min 58 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (999_600, "1 MB"), (1_234_000_000, "1.23 GB"), (5e13, "50 TB")],
)
def test_byte_counts(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(("count", "step"), [(31, 2), (100, 5), (200, 10), (251, 20), (1000, 50), (2600, 200)])
def test_ticks_stay_few_and_round(count, step):
    assert report._tick_step(count) == step
