"""The pages for people, against the code: links, pictures, paths, commands, settings and snippets."""

import ast
import dataclasses
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flwr.common.config import parse_config_args

from client_app.personal import Personal
from client_app.programs import write_program
from client_app.site.site_keys import KEYS as SITE_KEYS
from common.config import RUN_OPTIONS, load_config, parse_overrides, profiles
from common.config.profiles import COMPARISON_ONLY, PROFILE_ONLY, is_comparison
from common.methods import built_in, find
from common.models import build_model
from common.options import Option
from common.text import kebab
from mh_pfedhn import simulation
from mh_pfedhn.cli import make_parser
from mh_pfedhn.commands.run import overrides_of
from mh_pfedhn.comparing.plan import make_plan
from server_app.results import Run

ROOT = Path(__file__).resolve().parents[1]
README, SETTINGS, OPERATOR = ROOT / "README.md", ROOT / "docs" / "settings.md", ROOT / "docs" / "operator.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", CHANGELOG, *sorted((ROOT / "docs").glob("*.md"))]
# Those that speak of files that are no more, or that a reader is to write.
OF_OTHER_FILES = {CHANGELOG, ROOT / "docs" / "adding-a-method.md"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLACEHOLDERS = ("…", "NAME")
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"results", ".venv"}

ALL_PAGES = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclasses.dataclass(frozen=True)
class Page:
    """A page taken apart."""

    prose: list[str]  # its lines without fenced blocks
    fenced: list[tuple[str, str]]  # info string and content of each block


def read(path: Path) -> Page:
    prose: list[str] = []
    fenced: list[tuple[str, str]] = []
    info, content = "", list[str]()
    inside = False
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            if inside:
                fenced.append((info, "\n".join(content)))
            inside, info, content = not inside, line.removeprefix("```"), []
        elif inside:
            content.append(line)
        else:
            prose.append(line)
    assert not inside, f"{path.name}: a fenced block has no end"
    return Page(prose, fenced)


def blocks(path: Path, language: str) -> list[tuple[str, str]]:
    """The blocks in this language, each with the name of the file that it stands for, or an empty one."""
    found = [(info.partition(" "), content) for info, content in read(path).fenced]
    return [(name, content) for (own, _, name), content in found if own == language]


def code_spans(path: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", "\n".join(read(path).prose))]


def commands(path: Path) -> list[list[str]]:
    """The words of each line in the sh blocks, without comments."""
    lines = [line for _, content in blocks(path, "sh") for line in content.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def links(path: Path) -> list[str]:
    text = re.sub(r"`[^`]*`", "", "\n".join(read(path).prose))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, without punctuation, dashes for spaces, numbered where repeated."""
    found: list[str] = []
    for line in read(path).prose:
        if heading := re.fullmatch(r"#{1,6} (.+)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


# Links and paths ------------------------------------------------------------------------------------------------------


@ALL_PAGES
def test_every_link_and_picture_leads_somewhere(page):
    dead = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        is_there = file.is_relative_to(ROOT) and file.exists()
        if not is_there or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []


def test_the_readme_leads_to_every_page():
    linked = {(README.parent / target.partition("#")[0]).resolve() for target in links(README)}
    assert set(PAGES) - {README} <= linked


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OF_OTHER_FILES], ids=lambda page: page.name)
def test_every_path_of_the_repository_is_there(page):
    words = [word for span in code_spans(page) for word in span.split()] + [w for line in commands(page) for w in line]
    for word in words:
        if word.partition("/")[0] in FOLDERS and "/" in word and not any(each in word for each in PLACEHOLDERS):
            assert (ROOT / word).exists(), f"{page.name} names {word}, which is not there"


# Commands -------------------------------------------------------------------------------------------------------------


def parse(arguments: list[str], where: str) -> Any:
    try:
        return make_parser().parse_args(arguments)
    except SystemExit as ended:
        if ended.code:
            pytest.fail(f"{where}: mh-pfedhn does not take {shlex.join(arguments)!r}")


def check(arguments: list[str], where: str) -> Any:
    """Parse arguments of mh-pfedhn and, of a run, the settings that they give."""
    options = parse(arguments, where)
    if arguments[0] == "run":
        load_config(overrides_of(options))
    if arguments[0] == "compare":
        overrides = parse_overrides([item for group in options.overrides for item in group])
        assert make_plan(options.comparison, overrides).runs
    return options


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the YAML files that a page shows into the working folder, beside the examples; return their names.

    There is a run as well.
    """

    def write(page: Path) -> set[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(ROOT / "tests" / "e2e" / "plugin"))  # what adding-a-method.md builds
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        (tmp_path / "results/RUN").mkdir(parents=True)
        (tmp_path / "results/RUN/config.yaml").write_text(yaml.safe_dump(load_config({}).to_dict()))
        for name, content in blocks(page, "yaml"):
            if name:
                (tmp_path / name).write_text(content)
        return {name for name, _ in blocks(page, "yaml") if name}

    return write


@ALL_PAGES
def test_every_command_line_of_ours_is_taken_with_its_profile_and_keys(page, written):
    written(page)
    for words in commands(page):
        if Path(words[0]).name != "mh-pfedhn":
            continue
        options = check(words[1:], page.name)
        if words[1] == "site":
            assert options.site.exists(), f"{page.name}: {options.site} is neither there nor shown before"


@ALL_PAGES
def test_every_command_in_a_sentence_is_one_of_ours(page, written):
    written(page)
    for span in code_spans(page):
        words = shlex.split(span) if span.startswith("mh-pfedhn ") and "…" not in span else []
        if words and all(re.fullmatch("[a-z]+", word) for word in words[1:]):
            parse([*words[1:], "--help"], page.name)  # only a command's name, without what it needs
        elif words:
            check(words[1:], page.name)


@ALL_PAGES
def test_every_flwr_run_sets_what_flower_and_we_know(page):
    for words in commands(page):
        if words[:2] == ["flwr", "run"] and "-c" in words:
            config = parse_config_args([words[words.index("-c") + 1]])
            assert config.keys() <= PYPROJECT["tool"]["flwr"]["app"]["config"].keys()
            load_config(config, origin="the run config")


@ALL_PAGES
def test_every_make_target_is_in_the_makefile(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    spans = [span.split() for span in code_spans(page)]
    for words in [*commands(page), *spans]:
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"{page.name} names {' '.join(words)!r}"


# Snippets -------------------------------------------------------------------------------------------------------------


@ALL_PAGES
def test_every_yaml_block_holds_keys_that_exist(page, written):
    names = written(page)
    for name, content in blocks(page, "yaml"):
        loaded = yaml.safe_load(content)
        known = SITE_KEYS.keys() | known_options().keys()
        if is_comparison(loaded):
            known |= {*COMPARISON_ONLY, *PROFILE_ONLY}
        assert loaded.keys() <= known, f"{page.name}: {content}"
        if name == "site.yaml":
            for key, value in loaded.items():
                SITE_KEYS[key](value)
    for name in names - {"site.yaml"}:
        if is_comparison(yaml.safe_load(Path(name).read_text())):
            assert make_plan(name, {}).runs
        else:
            load_config({"profile": name})


def test_the_own_models_and_data_that_are_shown_are_taken_by_a_simulation(written, tmp_path, monkeypatch):
    written(SETTINGS)
    monkeypatch.syspath_prepend(tmp_path)
    for name, content in blocks(SETTINGS, "python"):
        if name:
            (tmp_path / name).write_text(content)
    config = simulation.from_here(load_config({"profile": "visits.yaml", "device": "cpu"}))
    assert {name.partition(":")[0] for name in config.own_code} == {"my_data", "my_nets"}
    simulation.check(config)


def test_every_python_block_of_the_readme_calls_what_there_is():
    found = blocks(README, "python")
    assert found
    for _, content in found:
        tree = ast.parse(content)
        modules, results = dict[str, Any](), set[str]()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(
                ("mh_pfedhn.run(", "mh_pfedhn.load")
            ):
                results |= {ast.unparse(target) for target in node.targets}
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "mh_pfedhn.run":
                given = {kebab(str(each.arg)): ast.literal_eval(each.value) for each in node.keywords}
                load_config(given | {"profile": ast.literal_eval(node.args[0])})
        assert results
        of_run = {field.name for field in dataclasses.fields(Run)} | set(dir(Run))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in modules:
                    assert hasattr(modules[node.value.id], node.attr), ast.unparse(node)
                if node.value.id in results:
                    assert node.attr in of_run, ast.unparse(node)


def test_the_snippet_about_trained_models_runs_one(tmp_path, monkeypatch):
    (content,) = (content for _, content in blocks(SETTINGS, "python") if "torch.export.load" in content)
    (command,) = (words for words in commands(SETTINGS) if words[:2] == ["mh-pfedhn", "export"])
    output = make_parser().parse_args(command[1:]).output
    assert f'"{output}"' in content
    monkeypatch.chdir(tmp_path)
    about = {"image-shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}
    model = build_model("lenet", (1, 8, 8), 3, seed=0)
    write_program(Personal(tmp_path, model.state_dict(), about), model, output, "torch-export")
    names = {"images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}
    exec(content, names)
    assert names["logits"].shape == (4, 3)


# Settings -------------------------------------------------------------------------------------------------------------


def known_options() -> dict[str, Option]:
    options = dict(RUN_OPTIONS)
    for name in built_in():
        options |= find(name).options
    return options


def tables(path: Path, header: str) -> Iterator[tuple[str, str, list[list[str]]]]:
    """The tables whose first column has this header: the heading and the paragraph before them, and their rows."""
    heading = paragraph = ""
    rows: list[list[str]] | None = None
    for line in [*read(path).prose, ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if rows is not None:
                rows.append(cells)
            elif cells[0] == header:
                rows = []
            continue
        if rows is not None:
            yield heading, paragraph, rows[1:]  # less the line of dashes
            rows = None
        if line.startswith("#"):
            heading, paragraph = line.lstrip("# "), ""
        elif line:
            paragraph = line


def spans_of(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def as_shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_the_tables_of_keys_hold_each_key_with_its_default():
    shown: dict[str, set[str]] = {}  # by method, "" for every run
    for heading, paragraph, rows in tables(SETTINGS, "key"):
        methods = [""] if heading == "Keys of every run" else spans_of(paragraph)
        assert methods, f"no method is named above the table of {rows[0][0]}"
        for method in methods:
            options = find(method).options if method else RUN_OPTIONS
            for name, default, _ in rows:
                (key,) = spans_of(name)
                assert key in options, f"{method or 'no run'} has no {key}"
                assert "".join(spans_of(default)) == as_shown(options[key].default), f"the default of {key}"
                shown.setdefault(method, set()).add(key)
    assert shown.keys() >= {"", "local", "fedavg", "mh-pfedhn", "mh-pfedhn-g", "mh-pfedhn-gd"}
    for method, keys in shown.items():
        assert keys == (find(method).options if method else RUN_OPTIONS).keys(), f"keys of {method or 'every run'}"


def test_the_profiles_that_are_named_exist():
    names = [name for name, _ in profiles()]
    ((_, _, rows),) = tables(SETTINGS, "profile")
    shown = [part.replace("…", "*") for row in rows for span in spans_of(row[0]) for part in span.split("+")]
    assert len(shown) > 10
    for pattern in shown:
        assert any(fnmatch(name, pattern) for name in names), f"there is no profile {pattern}"


def test_the_keys_of_a_sites_file_are_all_explained():
    ((_, _, rows),) = tables(OPERATOR, "key")
    assert {key for row in rows for key in spans_of(row[0])} == SITE_KEYS.keys()


# Other files ----------------------------------------------------------------------------------------------------------


def test_the_readme_can_be_read_in_five_minutes():
    assert len(README.read_text().splitlines()) <= 250


def test_the_changelog_knows_the_version():
    assert f"[{PYPROJECT['project']['version']}]" in CHANGELOG.read_text()


def test_the_citation_has_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == PYPROJECT["project"]["license"]
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert work["type"]
        assert work["authors"]
        for author in work["authors"]:
            assert author.keys() in ({"name"}, {"family-names", "given-names"})
    assert citation["message"]
    assert "Hypernetworks for Model-Heterogeneous" in citation["references"][0]["title"]


def test_the_hooks_run_what_make_lint_runs_and_download_nothing():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    linters = {line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()}
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert {repo["repo"] for repo in repos} == {"local"}
    assert {(hook["language"], hook["pass_filenames"]) for hook in hooks} == {("system", False)}
    assert linters <= {hook["entry"] for hook in hooks}
