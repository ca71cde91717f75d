"""Clients that failed are told of beside the numbers that they are in, and runs that were never tested are marked."""

import pytest
from small_comparisons import write_plan, write_run

from server_app.results import read_run
from server_app.results.comparison import read_comparison, write_comparison
from server_app.results.comparison.failing import failing
from server_app.results.comparison.figures import learned_nothing
from server_app.results.comparison.notes import failing_in, notes
from server_app.results.comparison.sheets import accuracy_sheet

ACCURACIES = (0.1, 0.2, 0.3)


def rounds_of(*rounds, reason="client-raised", **more):
    """Further keys of rounds, each given as who trained and who failed: `("abc", "d")`."""
    return [
        {
            "client-train-loss": dict.fromkeys(trained, 1.0),
            "failure-list": [{"client": client, "reason": reason, "detail": ""} for client in failed],
        }
        | more
        for trained, failed in rounds
    ]


def write(folder, rounds, clients="abc", **more):
    return write_run(folder, [(each,) * len(clients) for each in ACCURACIES], more=rounds, **more)


def words_of(folder, rounds, **more):
    return failing(read_run(write(folder, rounds, **more))).words()


@pytest.fixture
def failed(tmp_path):
    """Client b fails in all rounds of fedavg's seed 0; in seed 1 nobody does, and in another setting it is not over."""
    folder = write_plan(
        tmp_path / "c",
        [("x-0", "fedavg", "same", 0), ("x-1", "fedavg", "same", 1), ("y", "fedavg", "other", 0)],
    )
    write(folder / "x-0", rounds_of(*[("ac", "b")] * 3))
    write(folder / "x-1", rounds_of(*[("abc", "")] * 3), seed=1)
    write(folder / "y", rounds_of(*[("ac", "b")] * 3), finished=False)
    return folder


def test_a_client_that_never_trained_stands_under_the_table_everywhere(failed):
    said = "fedavg, seed 0: 1 of 3 clients never trained (client-raised)"
    comparison = read_comparison(failed)
    assert failing_in(comparison, "same") == [said]
    assert failing_in(comparison, "other") == []  # it goes on
    write_comparison(failed)
    markdown, page = (failed / "table.md").read_text(), (failed / "comparison.html").read_text()
    assert f"- {said}" in markdown.partition("## other")[0].splitlines()
    assert f"<li>{said}</li>" in page
    assert f"% {said}" in (failed / "table.tex").read_text().splitlines()
    assert said in comparison.table().splitlines()
    assert any(note.startswith("never trained: ") for note in notes(comparison))


def test_rows_have_the_sums_over_seeds_and_the_run_counts_all_the_same(failed):
    same, other = read_comparison(failed).rows
    assert (same["clients-never-trained"], same["failures"]) == (1, 3)
    assert (same["seeds-finished"], same["last-accuracy-mean"]) == (2, pytest.approx(0.3))
    assert (other["clients-never-trained"], other["failures"]) == (None, None)
    assert "clients-never-trained,failures" in (write_comparison(failed).parent / "table.csv").read_text()


def test_nothing_is_said_where_nobody_failed(comparison):
    assert [failing_in(comparison, setting) for setting in comparison.settings] == [[], []]
    assert not [note for note in notes(comparison) if "never trained" in note]


def test_many_failed_updates_are_told_of_and_a_tenth_of_them_is_not(tmp_path):
    rounds = [("abc", ""), ("abc", ""), ("abc", "")]
    assert words_of(tmp_path / "none", rounds_of(*rounds)) is None
    rounds[1] = "ab", "c"
    assert words_of(tmp_path / "ninth", rounds_of(*rounds, reason="late")) == "1 of 9 updates failed (late)"
    clients = "abcdefghij"
    rounds = [(clients, ""), (clients[:8], "ij"), (clients[:9], "j")]
    assert words_of(tmp_path / "tenth", rounds_of(*rounds), clients=clients) is None


def test_those_who_never_trained_and_failures_of_others_are_told_apart(tmp_path):
    rounds = rounds_of(("a", "b"), ("a", "b"), ("", "ab"), reason="late")
    expected = "1 of 2 clients never trained (late); 4 of 6 updates failed (late)"
    assert words_of(tmp_path / "x", rounds, clients="ab") == expected


def test_a_client_that_was_never_drawn_has_not_failed(tmp_path):
    assert words_of(tmp_path / "x", rounds_of(("a", ""), ("b", ""), ("a", ""))) is None


def test_a_failure_beside_a_used_update_and_one_of_a_node_cost_no_update(tmp_path):
    assert words_of(tmp_path / "x", rounds_of(*[("abc", ["a", "node 7"])] * 3)) is None


def test_known_clients_of_mode_adapt_are_not_asked_to_train(tmp_path):
    folder = write(tmp_path / "x", rounds_of(*[("ac", "b")] * 3))
    rows = (folder / "clients.csv").read_text().splitlines()
    head, *rows = [row.split(",") for row in rows]
    rows[1][head.index("known")] = "true"
    (folder / "clients.csv").write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")
    assert failing(read_run(folder)).words() is None


def test_who_trained_is_not_told_where_a_method_writes_down_other_losses_or_none(tmp_path):
    rounds = [("", "a"), ("", ""), ("", "")]
    assert words_of(tmp_path / "none", rounds_of(*rounds)) is None
    head = {"head-loss": 1.0, "head-clients": 2}
    assert words_of(tmp_path / "other", rounds_of(*[("", "a")] * 3, **head)) is None


def test_a_run_that_was_never_tested_is_marked_and_never_best(tmp_path):
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0), ("y", "pfedhn", "same", 0)])
    untested = dict.fromkeys(("accuracy", "accuracy-mean", "accuracy-std", "accuracy-worst10", "loss"))
    broken = rounds_of(*[("", "abc")] * 3, reason="not-finite", **untested, **{"client-accuracy": {}})
    write(folder / "x", broken)
    write(folder / "y", rounds_of(*[("abc", "")] * 3))
    comparison = read_comparison(folder)
    assert [row["learned-nothing"] for row in comparison.rows] == [1, 0]
    sheet = accuracy_sheet(comparison, "same")
    assert [row[0].text for row in sheet.rows] == ["fedavg †", "pfedhn"]
    assert not any(cell.is_best for row in sheet.rows for cell in row)  # with one method there is no best
    assert failing_in(comparison, "same") == ["fedavg, seed 0: 3 of 3 clients never trained (not-finite)"]
    write_comparison(folder)
    for name in ("table.md", "table.tex", "comparison.html"):
        assert "x: was never tested" in (folder / name).read_text()


def test_a_run_that_goes_on_may_not_have_been_tested_yet(tmp_path):
    run = read_run(write_run(tmp_path / "x", [None, (0.5,)]))
    assert learned_nothing(run) is None
    lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
    (run.run_dir / "metrics.jsonl").write_text(lines[0] + "\n")
    assert "never tested" in learned_nothing(read_run(run.run_dir))
    (run.run_dir / "summary.json").unlink()
    assert learned_nothing(read_run(run.run_dir)) is None


def test_many_lines_are_cut_and_the_rest_counted(tmp_path):
    folder = write_plan(tmp_path / "c", [(f"x-{seed}", "fedavg", "same", seed) for seed in range(14)])
    for seed in range(14):
        write(folder / f"x-{seed}", rounds_of(*[("ac", "b")] * 3), seed=seed)
    lines = failing_in(read_comparison(folder), "same")
    assert (len(lines), lines[-1]) == (13, "2 more runs: see failures in table.csv")
