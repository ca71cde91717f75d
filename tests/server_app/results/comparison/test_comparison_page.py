"""The page: whole, self-contained, and honest about what is missing."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from small_comparisons import write_plan, write_run, write_runs

from common.errors import UserError
from server_app.results.comparison import write_comparison, write_report_of
from server_app.results.script import SCRIPT

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

_VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Collects elements, references and visible text, and holds the page to closing what it opens."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.references, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.references += [attributes[name] for name in ("src", "srcset") if name in attributes]
        if tag == "a":
            self.links.append(attributes["href"])
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "

    @property
    def words(self):
        return " ".join(self.text.split())


def page_of(path):
    return Page(path.read_text())


def test_page_is_one_self_contained_file_for_light_and_dark_screens(folder):
    path = write_comparison(folder)
    assert path == folder / "comparison.html"
    page = page_of(path)
    assert len(page.references) == 4
    assert all(each.startswith("data:image/png;base64,") for each in page.references)
    assert [each["class"] for tag, each in page.tags if tag == "img"] == ["light", "dark"] * 2
    assert len(set(page.references)) == 4
    assert not {"link", "iframe"} & {tag for tag, _ in page.tags}
    text = path.read_text()
    assert not re.search(r"https?://|@import|url\(|fetch|XMLHttp", text)
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert all(len(each["alt"]) > 40 for tag, each in page.tags if tag == "img")


def test_page_has_the_numbers_and_what_is_missing(folder):
    words = page_of(write_comparison(folder)).words
    for expected in (
        "12 runs: 9 finished, 1 unfinished, 1 missing, 1 failed.",
        "fedavg-mixed-2 failed, round 2 of 3 the disk <is> full",
        "alone-mixed-1 missing –",
        "same: accuracy",
        "fedavg 3 0.633 ± 0.153 0.667 ± 0.115",
        "fedavg 1 of 3 (1 unfinished, 1 failed) 0.600",
        "same: costs, to a mean accuracy of 0.55 and in all",
        "reloads itself every 30 seconds",
    ):
        assert expected in words


def test_page_does_not_reload_itself_once_all_runs_have_ended(folder):
    for run in ("fedavg-mixed-1", "alone-mixed-1"):
        write_run(folder / "x", [(0.5, 0.5)] * 3, seed=1)
        (folder / run).exists() and [path.unlink() for path in (folder / run).iterdir()] and (folder / run).rmdir()
        (folder / "x").rename(folder / run)
    page = page_of(write_comparison(folder))
    assert "refresh" not in {each.get("http-equiv") for _, each in page.tags}
    assert "1 failed" in page.words


def test_page_links_to_the_reports_that_there_are(folder):
    (folder / "fedavg-same-0" / "report.html").write_text("")
    assert page_of(write_comparison(folder)).links == ["fedavg-same-0/report.html"]


def test_every_row_has_a_cell_under_each_head(folder):
    for table in re.findall(r"<table class=\"sortable\">.*?</table>", write_comparison(folder).read_text(), re.DOTALL):
        rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        assert len(rows) > 1
        assert len({len(re.findall(r"<t[hd]\b", row)) for row in rows}) == 1


def test_tables_are_sorted_by_numbers_not_by_how_they_are_written(folder):
    text = write_comparison(folder).read_text()
    cells = re.findall(r'data-number="([^"]+)">([^<]+)<', text)
    assert ("420", "420 bytes") in {(f"{float(number):g}", words) for number, words in cells}
    assert any(words == "0.633" and float(number) == pytest.approx(1.9 / 3) for number, words in cells)


def test_page_has_the_script_of_a_runs_page(folder):
    assert SCRIPT in write_comparison(folder).read_text()


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_each_table_keeps_its_own_order_when_the_page_reloads_itself(folder, tmp_path):
    clicks = """<script>
      const columns = ["4", "1"];  // mean, best of the first table; method of the second
      const seen = sessionStorage.getItem("seen");
      if (!seen) {
        sessionStorage.setItem("seen", "yes");
        [...document.querySelectorAll("table.sortable")].slice(0, 2).forEach((table, number) =>
          table.querySelector(`th:nth-child(${columns[number]}) button`).click());
        location.reload();
      }
    </script>"""
    page = write_comparison(folder)
    page.write_text(page.read_text().replace("</body>", clicks + "</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    tables = re.findall(r'<table class="sortable">.*?</table>', shown, re.DOTALL)
    heads = [re.findall(r'<th[^>]* aria-sort="ascending"[^>]*><button[^>]*>([^<]+)', table) for table in tables]
    assert heads[:3] == [["mean, best"], ["method"], []]
    methods = [re.findall(r'<td class="words ">([a-z]+)</td>', table) for table in tables[:2]]
    assert methods == [["alone", "fedavg"]] * 2


def test_settings_that_differ_are_named_with_what_they_hang_on(folder):
    words = page_of(write_comparison(folder)).words
    assert "method fedavg fedavg local alone" in words
    assert "Settings in common num-rounds 3 dataset npz" in words
    assert "seed 0" not in words


def test_names_from_outside_are_escaped(tmp_path):
    hostile = "<script>alert(1)</script>"
    folder = write_plan(
        tmp_path / "c", [("x", hostile, hostile, 0)], failures={"y": "z"}, name=hostile, description=hostile
    )
    write_run(folder / "x", [(0.5,)] * 3, config={"dataset": hostile, "$\\frac{": hostile})
    page = page_of(write_comparison(folder))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.text.count(hostile) >= 5


def test_grid_has_a_table_of_all_points(tmp_path):
    runs = [(f"x-{rate}", "fedavg", "same", 0, {"client-lr": rate}) for rate in (0.01, 0.1)]
    folder = write_plan(tmp_path / "c", runs)
    for rate in (0.01, 0.1):
        write_run(folder / f"x-{rate}", [(0.1,), (0.2,), (0.5,)], more=[{"validation-accuracy-mean": rate}] * 3)
    words = page_of(write_comparison(folder)).words
    assert "same fedavg client-lr=0.01 no 1 0.010 0.500 same" in words
    assert "same fedavg client-lr=0.1 yes 1 0.100 0.500" in words
    assert "fedavg (client-lr=0.1) 1 0.500" in words
    assert "fedavg (client-lr=0.01)" not in words


# Runs without a plan


@pytest.fixture
def make_runs(tmp_path):
    """Returns a function that writes runs, given as settings that differ, and returns their folders."""

    def make(*configs):
        return write_runs(tmp_path / "results", [(0.1, 0.2), (0.4, 0.6)], configs)

    return make


def test_several_runs_are_drawn_onto_one_page_that_links_to_them(make_runs, tmp_path):
    folders = make_runs({"method": "fedavg"}, {"method": "local"})
    (folders[0] / "report.html").write_text("")
    (tmp_path / "pages").mkdir()
    output = tmp_path / "pages" / "two.html"
    assert write_report_of(folders, output) == output
    page = page_of(output)
    assert page.links == ["../results/run-0/report.html"]
    assert "2 runs beside each other" in page.words
    assert "fedavg 1 0.500 0.500" in page.words
    assert "refresh" not in {each.get("http-equiv") for _, each in page.tags}


def test_a_page_of_ours_is_written_over_and_another_file_is_not(make_runs, tmp_path):
    folders = make_runs({"method": "fedavg"}, {"method": "local"})
    output = tmp_path / "page.html"
    write_report_of(folders, output)
    write_report_of(folders, output)
    output.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="is there already, and no page of this kind"):
        write_report_of(folders, output)
    assert output.read_text() == "<html>mine</html>"
    with pytest.raises(UserError, match="is there already"):
        write_report_of(folders, tmp_path)
