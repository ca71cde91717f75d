"""The frame of the command line, and the commands that start nothing."""

import subprocess
import sys

import pytest

from common.config import RUN_OPTIONS, described_comparisons, described_methods, profiles
from common.methods import built_in, find
from mh_pfedhn.cli import main

MISTAKE = 2


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None, lambda path: path.write_text("")])
def test_report_on_what_is_no_run_ends_with_2_and_names_it(complaint, tmp_path, make):
    make(tmp_path / "here")
    assert str(tmp_path / "here") in complaint("report", str(tmp_path / "here"))


def test_report_on_a_run_of_no_rounds_ends_with_2(complaint, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert str(tmp_path / "metrics.jsonl") in complaint("report", str(tmp_path))


def test_profiles_lists_every_profile_with_its_description_and_every_key(capsys):
    assert main(["profiles"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    for name, description in profiles():
        assert any(line.split(maxsplit=1) == [name, description] for line in lines)
    for name, description in (*described_comparisons(), *described_methods()):
        assert description
        assert any(line.split(maxsplit=1) == [name, description] for line in lines)
    listed = {line.split(" = ")[0].strip() for line in lines if " = " in line}
    assert set(RUN_OPTIONS) <= listed
    assert all(set(find(name).options) <= listed for name in built_in())


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["run", "--no-such-option"], ["run", "-c"], ["report"], ["profiles", "x"]],
)
def test_a_wrong_command_line_ends_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == MISTAKE
    assert "usage: mh-pfedhn" in capsys.readouterr().err


def test_help_ends_with_0(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {command} " in text for command in ("run", "compare", "report", "profiles"))


@pytest.mark.parametrize("module", ["mh_pfedhn", "mh_pfedhn.cli", "mh_pfedhn.deployment.guard"])
def test_neither_app_is_loaded_nor_pytorch_nor_flower_before_it_is_needed(module):
    program = (
        f"import sys, {module}\n"
        "heavy = ('client_app', 'server_app', 'torch', 'flwr', 'ray', 'matplotlib')\n"
        "print([name for name in sys.modules if name.partition('.')[0] in heavy])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


def test_the_package_can_be_run_as_the_command():
    done = subprocess.run([sys.executable, "-m", "mh_pfedhn", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: mh-pfedhn ")


def test_a_reader_who_has_seen_enough_ends_it_without_a_traceback():
    words = [sys.executable, "-c", "from mh_pfedhn.cli import main; import sys; sys.exit(main(['profiles']))"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 1
