"""Words in sentences to users."""

import pytest

from common.text import kebab, nearest, shown, snake, spelled, split


@pytest.mark.parametrize(
    ("text", "parts"),
    [("", ()), (" , ,", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , b c ,", ("a", "b c"))],
)
def test_a_list_is_split_at_commas_without_blanks_and_gaps(text, parts):
    assert split(text) == parts


@pytest.mark.parametrize(("field", "key"), [("num_rounds", "num-rounds"), ("seed", "seed"), ("a_b_c", "a-b-c")])
def test_fields_and_keys_are_two_spellings_of_one_name(field, key):
    assert kebab(field) == key
    assert snake(key) == field


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("jiont", "; did you mean 'joint'?"),
        ("JIONT", "; did you mean 'joint'?"),
        ("sequental", "; did you mean 'Sequential'?"),
        ("xyzzy", ""),
        ("", ""),
    ],
)
def test_what_may_have_been_meant_is_hinted_at_in_its_own_spelling(word, hint):
    assert nearest(word, ["joint", "per-client", "Sequential"]) == hint
    assert nearest(word, []) == ""


def test_a_known_name_is_spelled_as_it_is_known_and_another_stays():
    known = ("LeNet", "vgg8")
    assert [spelled(word, known) for word in ("lenet", "LENET", "VGG8", "vgg8", "VGG", "")] == [
        *("LeNet", "LeNet", "vgg8", "vgg8"),
        *("VGG", ""),
    ]


@pytest.mark.parametrize(("value", "text"), [("a'b", '"a\'b"'), ("", "''"), (1e-3, "0.001"), ([1, "x"], "[1, 'x']")])
def test_a_value_is_shown_as_python_writes_it(value, text):
    assert shown(value) == text


def test_a_long_value_is_cut_short_and_its_length_said():
    assert shown("x" * 3000) == "'" + "x" * 49 + "… (3,002 characters)"
    assert shown(10**5000) == "a number of int with thousands of digits"
