"""The page and the table, rebuilt from the files of small runs."""

import re
from html.parser import HTMLParser

import pytest
from contrast import contrast
from small_runs import SECONDS, further, of_data, record

from server_app.results import Failure, final_table, write_report
from server_app.results.style import STYLE


class Page(HTMLParser):
    """Collects what the page refers to, its image texts, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.alternatives, self.text = [], [], [], ""
        self.scripts = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.references += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img" and attributes["class"] == "light":
            self.alternatives.append(attributes["alt"])

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem:
            self.scripts.append(data)
        else:
            self.text += data + " "


def page_of(run_dir):
    return Page(write_report(run_dir).read_text())


def test_page_has_the_headline_numbers(make_run):
    run_dir = make_run(failures=[Failure("b", "late", "no reply within 5 s")])
    assert write_report(run_dir) == run_dir / "report.html"
    text = " ".join(page_of(run_dir).text.split())
    for expected in (
        "mh-pfedhn on cifar10, 2 clients",
        "Best mean over clients 0.003 round 2",  # of 2 and 3 of 1000
        "Last mean over clients 0.001 round 3",
        "Rounds 3 of 3 finished",
        "Sent to clients 4.5 MB 1.5 MB a round",
        "Received 2.25 MB 750 kB a round",
        "generate 0.5 s, exchange 2.0 s",
        "late 3 b (3 times) round 3, client b: no reply within 5 s",
        "seed 11",
    ):
        assert expected in text


def test_page_has_the_mean_over_clients_beside_the_accuracy_over_all_samples(tracker):
    tracker.log_round(record(1, correct=(4, 8, 20)))  # mean 0.733, of all samples 0.8
    tracker.log_round(record(2, correct=(10, 10, 8)))  # mean 0.8, of all samples 0.7
    tracker.log_round(record(3, correct=(2, 6, 20)))  # mean 0.6, of all samples 0.7
    text = " ".join(page_of(tracker.run_dir).text.split())
    for expected in (
        "Best mean over clients 0.800 round 2",
        "Last mean over clients 0.600 round 3, std 0.327",
        "All test samples 0.700 round 3, best 0.800 in round 1",
    ):
        assert expected in text


def test_page_names_clients_whose_weight_was_cut_only_where_there_are_any(tracker):
    tracker.log_round(record(1))
    assert "max-client-weight" not in page_of(tracker.run_dir).text
    tracker.log_round(record(2, capped={"a": 0.75}))
    tracker.log_round(record(3, capped={"a": 0.999, "b": 0.6}))
    text = " ".join(page_of(tracker.run_dir).text.split())
    assert "a (claims 99.9 % of the samples; 2 rounds), b (claims 60.0 % of the samples; 1 round)." in text


def test_page_is_one_self_contained_file(make_run):
    run_dir = make_run()
    page = page_of(run_dir)
    assert len(page.alternatives) == 3
    assert all(len(text) > 20 for text in page.alternatives)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert ("html", {"lang": "en"}) in page.tags
    assert not {"link", "iframe"} & {tag for tag, _ in page.tags}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert not re.search(r"fetch|import|XMLHttp", "".join(page.scripts))
    assert not re.search(r"https?://|@import|url\(", (run_dir / "report.html").read_text())


def test_every_plot_has_a_dark_rendering_of_its_own_for_screens(make_run):
    page = page_of(make_run())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["class"] for image in images] == ["light", "dark"] * 3
    assert len({image["src"] for image in images}) == 6
    assert [image["alt"] for image in images[::2]] == [image["alt"] for image in images[1::2]]
    shown = re.search(r"@media (.*) {\n  \.light { display: none; }\n  \.dark { display: block; }", STYLE)
    assert shown
    assert shown[1] == "screen and (prefers-color-scheme: dark)"  # paper stays light


def test_text_has_the_contrast_of_level_aa_in_light_and_in_dark():
    light, dark = re.findall(r":root \{([^}]*)\}", STYLE)
    for variables in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", variables))
        for ground in ("ground", "panel", "note"):
            assert contrast(colours["ink"], colours[ground]) >= 4.5
            assert contrast(colours["muted"], colours[ground]) >= 4.5


def test_start_up_is_told_apart_and_in_no_mean(tracker):
    tracker.log_round(record(1, seconds=SECONDS | {"total": 14.0, "start": 10.0}))
    tracker.log_round(record(2))
    text = " ".join(page_of(tracker.run_dir).text.split())
    assert "4.0 s a round" in text
    assert "whole round 4.0 s. Apart from that, start-up 10 s: nodes, workers and registration" in text
    tracker.log_round(record(3, seconds=SECONDS | {"total": 7.0, "start": 3.0}))  # after a resume
    assert "start-up 13 s in 2 processes: " in " ".join(page_of(tracker.run_dir).text.split())


def test_runs_without_a_start_up_speak_of_none(make_run):
    assert "start-up" not in page_of(make_run()).text


def test_names_from_outside_are_escaped(make_run):
    hostile = "<script>alert('x')</script>"
    run_dir = make_run(keys=(hostile, "$\\frac{"), failures=[Failure(hostile, "late", "<img src=x>")])
    page = page_of(run_dir)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "alert" not in "".join(page.scripts)
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
    page = page_of(run_dir)
    assert "client-199" in page.text
    (alternative,) = [text for text in page.alternatives if "samples of each client" in text]
    assert " ".join(alternative.split()).endswith("the largest first, by what they are for: 200 clients, 100 classes.")


def test_page_says_how_the_samples_are_spread_and_whose_they_are_where_that_is_known(make_run, tracker):
    page = page_of(make_run(keys=("a", "b", "c"), class_names=("cat", "dog")))
    assert "3 samples; the smallest client has 1, the largest 1, the median 1." in " ".join(page.text.split())
    assert "Owner" not in page.text
    tracker.set_data(*of_data({"a": [8, 1], "d": [1, 0]}, ["cat", "dog"], {"a": "<b>ann</b>", "d": "dan"}))
    tracker.add_client("d", 1000, 2, "lenet")
    tracker.log_round(record(1))
    text = " ".join(page_of(tracker.run_dir).text.split())
    assert "Client Owner Architecture" in text
    assert "d dan lenet" in text
    assert "10 samples; the smallest client has 1, the largest 9, the median 5." in text


def test_page_of_an_adapt_run_says_which_clients_are_new(make_adapt_run):
    text = " ".join(page_of(make_adapt_run()).text.split())
    for expected in (
        "mh-pfedhn on cifar10, 5 clients. Mode adapt: what the hypernetwork learned in training is frozen; new clients "
        "(3 here) get embeddings of their own, clients known from training (2 here) are only evaluated.",
        "Last mean over new clients 0.400 round 2",
        "All test samples of new clients 0.400 round 2, best 0.400 in round 2; known clients 0.810",
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
    assert (
        "Differential privacy ε 3.25 δ 1e-05, of all deltas sent; client a, the worst of 1 clients that add noise"
        in text
    )
    assert "Epsilon" in text


def test_page_when_only_known_clients_were_evaluated(make_adapt_run):
    run_dir = make_adapt_run(evaluated="kl")
    assert final_table(run_dir).splitlines()[-2:] == [
        "no new client was evaluated",
        "over all test samples of known clients: last accuracy 0.810",
    ]
    text = " ".join(page_of(run_dir).text.split())
    assert "Best mean over new clients – not evaluated yet Last mean over new clients – not evaluated yet" in text
    assert "All test samples of new clients – not evaluated yet; known clients 0.810" in text


def heads_of(table):
    return re.findall(r"<th[^>]*>(.*?)</th>", table, re.DOTALL)


@pytest.mark.parametrize(("chunks", "expected"), [(79, True), (None, False)])
def test_page_has_a_column_of_chunks_only_where_there_are_any(make_run, chunks, expected):
    tables = re.findall(r"<table.*?</table>", write_report(make_run(chunks=chunks)).read_text(), re.DOTALL)
    architectures, clients, *_ = tables
    for table in (architectures, clients):
        assert ("Chunks" in heads_of(table)) == expected
        rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        assert {len(re.findall(r"<t[hd]\b", row)) for row in rows} == {len(heads_of(table))}


def test_page_shows_further_tests_where_there_are_any(tracker):
    tracker.log_round(further(1, correct=(8, 6, 20), after=(10, 10, 20), held_back=(1, 1, 2)))
    tracker.log_round(further(2, correct=(2, 6, 20), after=(4, 8, 20), held_back=(5, 3)))
    page = write_report(tracker.run_dir).read_text()
    text = " ".join(Page(page).text.split())
    for expected in (
        "Chosen on validation: mean over clients 0.600 round 2, best on test 0.800 in round 1",
        "Last mean over clients, after one epoch 0.733 best 1.000",
        "Last mean over clients, validation 0.800 best 0.800",
        "The star marks the round that is the best on validation samples",
        "b lenet 0.600 0.800 0.600 0.600 1",
    ):
        assert expected in text
    assert "chosen on these same test samples" not in text
    architectures, clients, *_ = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert heads_of(clients)[2:5] == ["Last accuracy, as deployed", "After one epoch", "Validation"]
    assert heads_of(architectures)[2:5] == ["Last accuracy", "After one epoch", "Validation"]
    for table in (architectures, clients):
        rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        assert {len(re.findall(r"<t[hd]\b", row)) for row in rows} == {len(heads_of(table))}


def test_page_and_table_say_where_fewer_clients_made_a_further_test(tracker):
    tracker.log_round(further(1, correct=(8, 6, 20), after=(10,)))
    tracker.log_round(further(2, correct=(2, 6, 20), after=(4, 8)))
    tracker.finish()
    text = " ".join(page_of(tracker.run_dir).text.split())
    assert "after one epoch 0.600 2 of 3 clients; best 1.000, 1 of 3 clients" in text
    assert "Means over clients, after one epoch over 2 of 3 clients; the best of a row" in text
    assert "(means over clients, after one epoch over 2 of 3 clients)" in final_table(tracker.run_dir)


def test_page_says_nothing_of_known_clients_that_made_no_further_test(adapting):
    adapting.log_round(further(1, correct=(8, 6, 20), after=(10, 10)))
    adapting.finish()
    assert not re.search(r"of [23] clients", page_of(adapting.run_dir).text)


def test_page_of_an_ordinary_run_knows_no_further_tests(make_run):
    assert not re.search(r"[Vv]alidation|one epoch|as deployed", page_of(make_run()).text)


def test_table_of_clients_can_be_sorted_and_shows_all(make_run):
    text = write_report(make_run(keys=[f"client-{i}" for i in range(150)])).read_text()
    (table,) = re.findall(r'<table class="sortable">.*?</table>', text, re.DOTALL)
    assert all(f"<td>client-{i}</td>" in table for i in range(150))
    assert 'querySelectorAll("table.sortable")' in text
    assert "content-visibility: auto" in text  # rows out of sight are not laid out


def test_a_page_that_cannot_be_written_leaves_the_old_one(make_run, monkeypatch):
    page = write_report(make_run())
    before = page.read_bytes()

    def fail(source, target):
        raise OSError("interrupted")

    monkeypatch.setattr("common.files.os.replace", fail)
    with pytest.raises(OSError, match="interrupted"):
        write_report(page.parent)
    assert page.read_bytes() == before
    assert not list(page.parent.glob(".*.tmp"))


def test_final_table(tracker):
    tracker.add_client("d", 3000, 6, "mlp")
    tracker.log_round(record(1, correct=(4, 6, 20)))
    tracker.log_round(record(2, correct=(2, 6, 16)))
    assert final_table(tracker.run_dir).splitlines() == [
        "architecture  clients               K  chunks  last accuracy  best accuracy",
        "---------------------------------------------------------------------------",
        "lenet               2           1,000       2          0.400          0.500",
        "mlp                 2  2,500 to 3,000  5 to 6          0.800          1.000",
        "---------------------------------------------------------------------------",
        "all                 4                                  0.533          0.667",
        "(means over clients)",
        "mean over clients: best accuracy 0.667 in round 1, last 0.533 in round 2",
        "over all test samples: best accuracy 0.750 in round 1, last 0.600 in round 2",
    ]


def test_final_table_of_an_adapt_run(adapting):
    adapting.log_round(record(1, correct=(4, 8, 20)))
    adapting.log_round(record(2, correct=(2, 8, 15)))
    assert final_table(adapting.run_dir).splitlines() == [
        "architecture  clients      K  chunks  last accuracy  best accuracy",
        "------------------------------------------------------------------",
        "lenet               1  1,000       2          0.200          0.400",
        "mlp                 1  2,500       5          0.800          0.800",
        "mlp (known)         1  2,500       5          0.750          1.000",
        "------------------------------------------------------------------",
        "all new             2                         0.500          0.600",
        "(means over clients)",
        "mean over new clients: best accuracy 0.600 in round 1, last 0.500 in round 2",
        "over all test samples of new clients: best accuracy 0.600 in round 1, last 0.500 in round 2",
        "over all test samples of known clients: last accuracy 0.750",
    ]


def test_final_table_has_a_column_for_each_further_test_and_what_validation_chose(tracker):
    tracker.log_round(further(1, correct=(8, 6, 20), after=(10, 10, 20), held_back=(1, 1, 2)))
    tracker.log_round(further(2, correct=(2, 6, 20), after=(4, 8, 20), held_back=(5, 3)))
    assert final_table(tracker.run_dir).splitlines() == [
        "architecture  clients      K  chunks  last accuracy  after one epoch  validation  best accuracy",
        "-----------------------------------------------------------------------------------------------",
        "lenet               2  1,000       2          0.400            0.600       0.800          0.700",
        "mlp                 1  2,500       5          1.000            1.000       0.200          1.000",
        "-----------------------------------------------------------------------------------------------",
        "all                 3                         0.600            0.733       0.800          0.800",
        "(means over clients)",
        "mean over clients: best accuracy 0.800 in round 1, last 0.600 in round 2",
        "over all test samples: best accuracy 0.850 in round 1, last 0.700 in round 2",
        "chosen on validation samples: round 2, mean over clients 0.600, over all test samples 0.700",
    ]


def test_final_table_of_a_run_that_was_never_evaluated(tracker):
    tracker.log_round(record(1))
    assert final_table(tracker.run_dir).endswith("no round was evaluated")
    assert tracker.finish()["best-accuracy"] is None


def test_final_table_of_a_method_without_chunks_has_no_column_for_them(make_run):
    assert final_table(make_run(chunks=None)).splitlines()[:3] == [
        "architecture  clients        K  last accuracy  best accuracy",
        "------------------------------------------------------------",
        "lenet               1  239,856          0.000          0.002",
    ]


def test_final_table_shows_a_dash_for_an_architecture_without_chunks(tracker):
    tracker.add_client("d", 3000, None, "mixed")
    tracker.log_round(record(1))
    (row,) = (line for line in final_table(tracker.run_dir).splitlines() if line.startswith("mixed"))
    assert row.split() == ["mixed", "1", "3,000", "–", "–", "–"]
