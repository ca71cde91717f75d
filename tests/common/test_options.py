"""Options: from a dataclass's fields to keys, what each takes, and how that is said."""

import dataclasses
from dataclasses import dataclass

import pytest

from common import settings
from common.config import RUN_OPTIONS
from common.errors import UserError
from common.methods import built_in, find
from common.options import AUTO, option, options_of
from common.text import shown


@dataclass(frozen=True, kw_only=True)
class Inherited:
    first_of_all: int = option(3, "declared below", minimum=1, maximum=9)
    no_option: str = "of no concern"


@dataclass(frozen=True, kw_only=True)
class Sample(Inherited):
    flag: bool = option(False, "a switch")
    share: float = option(0.5, "a share", above=0, maximum=1, source="Table 3")
    size: int | str = option(AUTO, "a size", minimum=1, words=(AUTO, "all"))
    name: str = option("", "a text")
    names: str = option("", "texts", is_list=True)
    choice: str = option("one", "a choice", choices=("one", "Two", "three"))
    choices: str = option("one", "choices", choices=("one", "Two", "three"), is_list=True)
    perhaps: str = option("", "a choice or none", choices=("one", "Two"))
    own: str = option("", "a function", own="a function of your own")
    several: str = option("one", "choices and own", choices=("one", "Two"), own="one of your own", is_list=True)


OPTIONS = options_of(Sample)


def test_keys_are_the_fields_in_kebab_case_in_their_order():
    keys = ["first-of-all", "flag", "share", "size", "name", "names", "choice", "choices", "perhaps", "own", "several"]
    assert list(OPTIONS) == keys
    assert [each.key for each in OPTIONS.values()] == keys


def test_an_option_knows_its_types_default_and_rule():
    size, share = OPTIONS["size"], OPTIONS["share"]
    assert (size.kinds, size.default, size.rule.words) == ({int, str}, AUTO, (AUTO, "all"))
    assert (share.kinds, share.default, share.rule.source, share.rule.fixed) == ({float}, 0.5, "Table 3", "")
    assert share.rule.help == "a share"


def test_a_group_may_be_read_where_it_is_inherited():
    assert options_of(Inherited) == {"first-of-all": OPTIONS["first-of-all"]}


@pytest.mark.parametrize("hint", [list[str], int | None, dict, "bytes", tuple[int, ...]])
def test_an_option_of_a_type_that_no_configuration_holds_is_refused(hint):
    odd = dataclasses.make_dataclass("Odd", [("what", hint, option(None, "odd"))])
    with pytest.raises(UserError, match=r"^Odd\.what is declared as .*, but an option is bool, int, float or str"):
        options_of(odd)


@pytest.mark.parametrize(
    ("key", "given", "taken"),
    [
        ("flag", True, True),
        ("flag", False, False),
        ("first-of-all", 1, 1),
        ("first-of-all", 9.0, 9),
        ("first-of-all", "4", 4),
        ("first-of-all", "4e0", 4),
        ("share", 1, 1.0),
        ("share", "1e-3", 0.001),
        ("share", 0.25, 0.25),
        ("size", 7, 7),
        ("size", "7", 7),
        ("size", "AUTO", AUTO),
        ("size", "All", "all"),
        ("name", "Any Text", "Any Text"),
        ("name", "", ""),
        ("name", 7, "7"),
        ("name", 2.5, "2.5"),
        ("name", True, "True"),
        ("names", ["a", "B"], "a,B"),
        ("names", [], ""),
        ("names", "a, B", "a, B"),
        ("choice", "TWO", "Two"),
        ("choice", " three ", "three"),
        ("choices", "one,TWO , three", "one,Two,three"),
        ("choices", ["two", "ONE"], "Two,one"),
        ("choices", ["two,one", "three"], "Two,one,three"),
        ("perhaps", "", ""),
        ("perhaps", "ONE", "one"),
        ("own", "", ""),
        ("own", "My.nets:Vit.small", "My.nets:Vit.small"),
        ("several", "ONE, My_nets:ViT ,two", "one,My_nets:ViT,Two"),
        ("several", ["a:b"], "a:b"),
    ],
)
def test_a_good_value_is_taken_in_the_type_of_its_option(key, given, taken):
    checked = OPTIONS[key].checked(given, "a test")
    assert checked == taken
    assert type(checked) is type(taken)


@pytest.mark.parametrize(
    ("key", "given", "said"),
    [
        *[("flag", given, "true or false.") for given in (0, 1, "true", "", None, [True])],
        *[
            ("first-of-all", given, "a whole number of at least 1 and at most 9.")
            for given in (0, 10, 1.5, "1.5", "", "many", True, None, [1], b"1", float("nan"), 10**400)
        ],
        *[("share", given, "a number above 0 and at most 1.") for given in (0, 1.1, "0", "nan", "inf", False, "auto")],
        *[("size", given, "a whole number of at least 1 or auto or all.") for given in (0, "automatic", 1.5, "")],
        *[("name", given, "text.") for given in (None, [], ["a"], {}, b"a")],
        *[("names", given, "text, or a list of texts.") for given in (None, ["a", 1], {}, [None])],
        *[("choice", given, "one of one, Two, three.") for given in ("", 5, None, True, ["one"], "zzz")],
        ("choice", "thre", "one of one, Two, three; did you mean 'three'?"),
        ("choice", "one,Two", "one of one, Two, three; did you mean 'Two'?"),
        *[
            ("choices", given, "a comma-separated list of one, Two, three.")
            for given in ("", [], "one,", ",", ["one", 5])
        ],
        ("choices", "one,tow,thre", "a comma-separated list of one, Two, three; did you mean 'Two'?"),
        ("choices", ["one", "tow"], "a comma-separated list of one, Two, three."),
        ("perhaps", "zzz", "one of one, Two."),
        ("perhaps", "a:b", "one of one, Two."),
        *[("own", given, "module:name for a function of your own.") for given in ("one", "a:", "a:b,c:d", "a b:c", 5)],
        *[
            ("several", given, "a comma-separated list of one, Two, or module:name for one of your own.")
            for given in ("", "one,a:", "one,a:b/c", "nets.py:b c")
        ],
        (
            "several",
            "a:b,tow",
            "a comma-separated list of one, Two, or module:name for one of your own; did you mean 'Two'?",
        ),
    ],
)
def test_another_value_is_refused_with_key_value_place_and_what_is_right(key, given, said):
    with pytest.raises(UserError) as caught:
        OPTIONS[key].checked(given, "a test")
    assert str(caught.value) == f"{key} is {'empty' if given == '' else shown(given)} in a test, but must be {said}"
    assert len(str(caught.value)) < 400


EVERY = {f"{name} {key}": each for name in built_in() for key, each in find(name).options.items()} | RUN_OPTIONS


@pytest.mark.parametrize("name", EVERY)
def test_every_default_of_the_project_is_a_value_of_its_option_and_explained(name):
    each = EVERY[name]
    assert each.checked(each.default, "the code") == each.default
    assert type(each.default) in each.kinds
    assert each.rule.help
    assert not each.rule.help.endswith(".")
    assert each.rule.fixed in ("", "always", "training", "simulation")


def test_every_group_of_settings_has_keys_of_its_own():
    groups = [
        settings.LocalTraining,
        settings.Anchored,
        settings.Compressed,
        settings.Bounded,
        settings.Noised,
    ]
    keys = [key for group in groups for key in options_of(group)]
    assert len(keys) == len(set(keys))
    assert not set(keys) & set(RUN_OPTIONS)


def test_whatever_the_server_sends_clients_may_send_too():
    assert settings.UPLOADS[: len(settings.DOWNLOADS)] == settings.DOWNLOADS
    assert "topk" not in settings.DOWNLOADS  # weights without most of their values are none
