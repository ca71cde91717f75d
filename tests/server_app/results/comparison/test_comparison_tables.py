"""The tables as Markdown, CSV, LaTeX and plain text."""

import csv
import io
import re
from collections import Counter

import pytest
from small_comparisons import write_plan, write_run

from server_app.results.comparison import read_comparison, write_comparison
from server_app.results.comparison.latex import escaped, latex
from server_app.results.comparison.notes import notes
from server_app.results.comparison.sheets import accuracy_sheet, cost_sheet
from server_app.results.comparison.text import comma_separated, markdown


def cells_of(sheet, row, *heads):
    return [sheet.rows[row][sheet.heads.index(head)] for head in heads]


def test_cells_have_mean_and_deviation_and_say_how_many_seeds(comparison):
    sheet = accuracy_sheet(comparison, "same")
    assert [cell.text for cell in cells_of(sheet, 0, "method", "seeds", "mean, last", "worst tenth")] == [
        "fedavg",
        "3",
        "0.633 ± 0.153",
        "0.567 ± 0.208",
    ]
    assert [cell.text for cell in cells_of(sheet, 0, "gain", "losing", "worst gain")] == [
        "+0.100 ± 0.173",
        "33 % ± 29 %",
        "-0.100",
    ]
    assert [cell.text for cell in cells_of(sheet, 1, "gain", "losing", "worst gain")] == ["–", "–", "–"]
    sheet = accuracy_sheet(comparison, "mixed")
    assert [cell.text for cell in cells_of(sheet, 0, "seeds", "mean, last")] == [
        "1 of 3 (1 unfinished, 1 failed)",
        "0.600",
    ]
    assert cells_of(sheet, 1, "seeds")[0].text == "2 of 3 (1 missing)"


def test_costs_have_the_target_in_their_title_and_say_how_many_seeds_came_there(comparison):
    sheet = cost_sheet(comparison, "same")
    assert sheet.title == "same: costs, to a mean accuracy of 0.55 and in all"
    assert [cell.text for cell in cells_of(sheet, 0, "bytes to target", "time to target", "training to target")] == [
        "280 bytes",
        "5.5 s",
        "4.0 s",
    ]
    assert cells_of(sheet, 0, "at target")[0].text == "3 of 3"
    assert [cell.text for cell in cells_of(sheet, 1, "at target", "bytes to target")] == ["1 of 3", "–"]
    assert [cell.text for cell in cells_of(sheet, 0, "bytes", "time", "training", "rounds", "K")] == [
        "420 bytes",
        "7.5 s",
        "6.0 s",
        "3",
        "1,000 to 1,001",
    ]


def test_accuracy_after_an_epoch_has_columns_only_where_it_was_measured(comparison, tmp_path):
    assert not [head for head in accuracy_sheet(comparison, "same").heads if "epoch" in head]
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0)])
    write_run(folder / "x", [(0.5,)] * 3, more=[{"after-training-accuracy-mean": 0.75}] * 3)
    sheet = accuracy_sheet(read_comparison(folder), "same")
    assert [cell.text for cell in cells_of(sheet, 0, "after an epoch, last", "after an epoch, best")] == ["0.750"] * 2


def test_it_is_said_where_fewer_clients_were_tested_after_an_epoch(tmp_path):
    folder = write_plan(tmp_path / "c", [(name, "fedavg", "same", seed) for seed, name in enumerate("xy")])

    def after(**accuracies):
        mean = sum(accuracies.values()) / len(accuracies)
        return {"after-training-accuracy-mean": mean, "client-after-training-accuracy": accuracies}

    write_run(folder / "x", [(0.1, 0.1), (0.2, 0.2), (0.5, 0.3)], more=[after(a=0.3, b=0.5)] * 3)
    assert not [note for note in notes(read_comparison(folder)) if "of 2 clients" in note]
    more = [after(a=0.3, b=0.5), after(b=0.9), after(a=0.8)]
    write_run(folder / "y", [(0.1, 0.1), (0.2, 0.2), (0.5, 0.3)], seed=1, more=more)
    (note,) = (note for note in notes(read_comparison(folder)) if note.startswith("after an epoch"))
    assert note.endswith("not over the same clients as the mean: y: last of 1 of 2 clients, best of 1 of 2 clients.")


def three_methods(tmp_path, **changes):
    """Means of 0.7, 0.6 and 0.4, with standard errors of 0.2, 0.1 and 0.2: 0.3 is just above 0.2828."""
    values = {"x": (0.5, 0.9), "y": (0.5, 0.7), "z": (0.2, 0.6)} | changes
    runs = [(f"{name}-{seed}", name, "same", seed) for name in values for seed in range(2)]
    folder = write_plan(tmp_path / "c", runs)
    for name, of_seeds in values.items():
        for seed, last in enumerate(of_seeds):
            write_run(folder / f"{name}-{seed}", [(0.1,), (0.15,), (last,)], seed=seed)
    return folder


def test_the_best_of_a_column_is_marked_and_what_is_within_a_standard_error(tmp_path):
    comparison = read_comparison(three_methods(tmp_path))
    sheet = accuracy_sheet(comparison, "same")
    marks = [cells_of(sheet, row, "mean, last")[0] for row in range(3)]
    assert [(cell.is_best, cell.is_close) for cell in marks] == [(True, False), (False, True), (False, False)]
    assert "| x | 2 | **0.700 ± 0.283** |" in markdown(comparison)
    assert "| y | 2 | *0.600 ± 0.141* |" in markdown(comparison)
    assert r"x & 2 & \textbf{0.700} {\tiny$\pm$ 0.283} &" in latex(comparison)
    assert r"y & 2 & \underline{0.600} {\tiny$\pm$ 0.141} &" in latex(comparison)


def test_a_standard_error_is_over_the_seeds_that_have_the_number(tmp_path):
    """Of y's three seeds two were tested after an epoch: 0.7 and 0.3, whose standard error is 0.2 and not 0.163."""
    values = {"x": (0.69, 0.69, 0.69), "y": (0.7, 0.3, None)}
    folder = write_plan(
        tmp_path / "c", [(f"{name}-{seed}", name, "same", seed) for name in values for seed in range(3)]
    )
    for name, of_seeds in values.items():
        for seed, value in enumerate(of_seeds):
            more = [{} if value is None else {"after-training-accuracy-mean": value}] * 3
            write_run(folder / f"{name}-{seed}", [(0.1,), (0.2,), (0.5,)], seed=seed, more=more)
    sheet = accuracy_sheet(read_comparison(folder), "same")
    cells = [cells_of(sheet, row, "after an epoch, last")[0] for row in range(2)]
    assert [(cell.text, cell.is_best, cell.is_close) for cell in cells] == [
        ("0.690 ± 0.000", True, False),
        ("0.500 ± 0.283", False, True),
    ]


def test_several_that_are_equally_good_are_all_best(tmp_path):
    sheet = accuracy_sheet(read_comparison(three_methods(tmp_path, y=(0.9, 0.5))), "same")
    assert [cells_of(sheet, row, "mean, last")[0].is_best for row in range(3)] == [True, True, False]


def test_what_is_not_finished_is_never_best(tmp_path):
    folder = three_methods(tmp_path)
    for seed in range(2):
        (folder / f"x-{seed}" / "summary.json").unlink()
    sheet = accuracy_sheet(read_comparison(folder), "same")
    assert [cells_of(sheet, row, "mean, last")[0].is_best for row in range(3)] == [False, True, False]
    assert cells_of(sheet, 0, "seeds")[0].text == "0 of 2 … (2 unfinished)"


def test_what_has_learned_nothing_is_marked_and_explained_and_never_best(tmp_path):
    folder = write_plan(
        tmp_path / "c", [("x", "fedavg", "same", 0), ("y", "pfedhn", "same", 0), ("z", "fedper", "same", 0)]
    )
    write_run(folder / "x", [(0.5, 0.5), (0.5, 0.4), (0.5, 0.5)], partition={"a": [5, 5], "b": [9, 9]})
    for name in "yz":
        write_run(folder / name, [(0.1, 0.1), (0.2, 0.2), (0.4, 0.4)])
    comparison = read_comparison(folder)
    assert [row["learned-nothing"] for row in comparison.rows] == [1, 0, 0]
    sheet = accuracy_sheet(comparison, "same")
    assert [row[0].text for row in sheet.rows] == ["fedavg †", "pfedhn", "fedper"]
    assert [row[2].is_best for row in sheet.rows] == [False, True, True]
    text = markdown(comparison)
    assert "x: mean accuracy 0.500, and guessing each client's most frequent class gets 0.500" in text
    assert r"fedavg $^{\dagger}$ &" in latex(comparison)
    assert "†" in comparison.table()


def test_csv_reads_back_as_the_rows(comparison):
    rows = list(csv.DictReader(io.StringIO(comma_separated(comparison))))
    assert len(rows) == len(comparison.rows) == 4
    for read, row in zip(rows, comparison.rows, strict=True):
        assert list(read) == list(row)
        assert float(read["last-accuracy-mean"]) == row["last-accuracy-mean"]  # in full
        assert read["gain-worst"] == ("" if row["gain-worst"] is None else repr(row["gain-worst"]))
        assert read["chosen"] == "true"


def test_markdown_has_whole_tables_and_names_what_is_missing(comparison):
    text = markdown(comparison)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "# small\n\nTwo methods.\n" in text
    assert "| fedavg-mixed-2 | failed, round 2 of 3 | the disk \\<is\\> full |" in text
    assert "| alone-mixed-1 | missing |  |" in text
    assert "| fedavg-mixed-1 | not finished, round 1 of 3 |  |" in text
    assert "chosen on the test samples themselves" in text


def test_plain_table(comparison):
    lines = comparison.table().splitlines()
    assert lines[:4] == [
        "same (target: mean accuracy 0.55)",
        "",
        "method  seeds     mean, last     mean, best    worst tenth            gain       losing"
        "  at target  bytes to target      bytes   time",
        lines[3],
    ]
    assert set(lines[3]) == {"-"}
    assert lines[4] == (
        "fedavg  3      0.633 ± 0.153  0.667 ± 0.115  0.567 ± 0.208  +0.100 ± 0.173  33 % ± 29 %"
        "     3 of 3        280 bytes  420 bytes  7.5 s"
    )
    assert "fedavg-mixed-2: failed, round 2 of 3: the disk <is> full" in lines
    assert lines[-1] == "(means over seeds ± standard deviation; best: chosen on the test samples)"


def test_latex_is_balanced_and_has_as_many_cells_in_every_row(comparison):
    text = latex(comparison)
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[{}]", "", code)
    assert bare.count("{") == bare.count("}")
    assert len(re.findall(r"(?<!\\)\$", code)) % 2 == 0
    begun, ended = (Counter(re.findall(rf"\\{word}\{{(\w+)\}}", code)) for word in ("begin", "end"))
    assert begun == ended == {"table": 8, "tabular": 8}
    tables = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", code, re.DOTALL)
    assert max(alignment.count("r") for alignment, _ in tables) == 7  # narrow enough for a page
    for alignment, body in tables:
        assert body.strip().startswith(r"\toprule")
        assert body.strip().endswith(r"\bottomrule")
        rows = re.sub(r"\\shortstack\{.*?\}(?= [&\\])", "head", body).split("\n")
        counts = {len(re.findall(r"(?<!\\)&", row)) for row in rows if row.endswith(r"\\")}
        assert counts == {len(alignment) - 1}
    assert not re.search(r"[^\x00-\x7f]", code)  # whatever encoding the document has
    assert len(set(re.findall(r"\\label\{(.*?)\}", code))) == 8
    assert "alone & 2 of 3 &" in text
    assert all(line.startswith("%") for line in text.splitlines() if "the disk" in line)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100 % of a_b & c#1", r"100 \% of a\_b \& c\#1"),
        (r"\input{x}$", r"\textbackslash{}input\{x\}\$"),
        ("[x] ~ ^", r"{[}x{]} \textasciitilde{} \textasciicircum{}"),
        ("two\n\nlines", "two lines"),
    ],
)
def test_latex_shows_text_as_it_is(text, expected):
    assert escaped(text) == expected


def test_a_comparison_of_which_nothing_has_run_is_written_all_the_same(tmp_path):
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0), ("y", "local", "same", 0)])
    assert write_comparison(folder) == folder / "comparison.html"
    assert sorted(path.name for path in folder.iterdir()) == [
        "accuracy.png",
        "comparison.html",
        "comparison.yaml",
        "table.csv",
        "table.md",
        "table.tex",
    ]
    assert "0 of 1 (1 missing)" in (folder / "table.md").read_text()
    assert "x: missing" in read_comparison(folder).table()
