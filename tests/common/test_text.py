"""Words in sentences to users."""

import pytest

from common.text import kebab, nearest, plain, printable, shown, snake, spelled, split


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


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[31mred\x1b[0m and \x1b[1;32mgreen", "red and green"),
        ("\x1b[2J\x1b[Hcleared", "cleared"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred \x9d0;title\x9ctext", "red text"),
        ("\x1bcreset", "reset"),
        ("\x1b]0;no end", "0;no end"),
        ("\x1b", ""),
        ("over\rwritten\x08\x00\x7f.", "over written   ."),
        ("\u202eright to left\u200b", " right to left "),
        ("  indented\tü日 \ud800", "  indented ü日  "),
    ],
)
def test_nothing_that_a_terminal_obeys_is_left_of_a_line(line, shown):
    assert plain(line) == shown
    assert printable(line) == " ".join(shown.split())


def test_a_text_from_outside_is_one_line_of_bounded_length():
    assert printable("two\n  lines\r\n") == "two lines"
    assert printable("x" * 600) == "x" * 500
    assert printable("x" * 600, 10) == "x" * 10
    assert printable("\x1b[31m" * 10**7) == ""


@pytest.mark.parametrize(("value", "text"), [("a'b", '"a\'b"'), ("", "''"), (1e-3, "0.001"), ([1, "x"], "[1, 'x']")])
def test_a_value_is_shown_as_python_writes_it(value, text):
    assert shown(value) == text


def test_a_long_value_is_cut_short_and_its_length_said():
    assert shown("x" * 3000) == "'" + "x" * 49 + "… (3,002 characters)"
    assert shown(10**5000) == "a number of int with thousands of digits"
