"""Schemas: what an array of a message and a fact of a registration must be."""

import math

import pytest

from common.errors import ProtocolError
from common.schema import Array, Dimensions, Label, UpTo, Vector, Whole


def refusal(function, *arguments):
    with pytest.raises(ProtocolError) as caught:
        function(*arguments)
    assert "\n" not in caught.value.detail
    return caught.value


# Arrays


@pytest.mark.parametrize(
    ("array", "most", "text"),
    [
        (Array(()), 1, "float32 []"),
        (Array((3, 4)), 12, "float32 [3, 4]"),
        (Array((UpTo("n", 100), 64)), 6400, "float32 [n <= 100, 64]"),
        (Array((UpTo("n", 100),), "int64", below=10), 100, "int64 [n <= 100]"),
        (Array((UpTo("n", 5), 0)), 0, "float32 [n <= 5, 0]"),
        (Vector(239_856), 239_856, "float32 [239856]"),
    ],
)
def test_an_array_says_how_many_values_it_holds_at_most_and_what_it_is(array, most, text):
    assert array.most == most
    assert str(array) == text


def test_a_vector_is_a_float32_array_of_one_fixed_dimension_for_which_codecs_may_be_used():
    assert Vector(7) == Array((7,), codec=True)
    assert Vector(7) != Array((7,))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": (3,), "dtype": "float64"}, "dtype is 'float64', but must be one of float32, int64"),
        ({"shape": (3,), "dtype": "int32"}, "dtype is 'int32'"),
        ({"shape": (3,), "below": 5}, "below is 5, but only whole numbers"),
        *[
            ({"codec": True, **arguments}, "a codec takes a float32 vector of a fixed length of at least 1")
            for arguments in (
                {"shape": ()},
                {"shape": (0,)},
                {"shape": (3, 1)},
                {"shape": (UpTo("n", 3),)},
                {"shape": (3,), "dtype": "int64"},
            )
        ],
    ],
)
def test_a_declaration_that_no_array_could_fit_is_the_methods_mistake(arguments, words):
    with pytest.raises(ValueError, match=words):
        Array(**arguments)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), Array(())),
        ((3,), Array((3,))),
        ((0,), Array((0,))),
        ((0,), Array((UpTo("n", 3),))),
        ((3,), Array((UpTo("n", 3),))),
        ((2, 64), Array((UpTo("n", 3), 64))),
        ((2, 2), Array((UpTo("n", 3), UpTo("n", 5)))),
        ((2, 4), Array((UpTo("n", 3), UpTo("m", 5)))),
        ((1, 2, 3), Array((1, UpTo("n", 2), 3))),
    ],
)
def test_a_shape_within_the_bounds_fits(shape, expected):
    Dimensions().check("a", shape, expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1,), Array(())),
        ((), Array((1,))),
        ((4,), Array((3,))),
        ((3, 1), Array((3,))),
        ((4,), Array((UpTo("n", 3),))),
        ((-1,), Array((UpTo("n", 3),))),
        ((-1,), Array((3,))),
        ((10**18,), Array((UpTo("n", 3),))),
        ((2, 63), Array((UpTo("n", 3), 64))),
        ((64, 2), Array((UpTo("n", 3), 64))),
        ((1,) * 100, Array((UpTo("n", 3), 64))),
    ],
)
def test_another_shape_is_refused_with_what_it_must_be(shape, expected):
    error = refusal(Dimensions().check, "a", shape, expected)
    assert error.reason == "wrong-length"
    assert error.detail == f"'a' has shape {str(shape)[:60]}, but must be {expected}"


def test_dimensions_of_one_name_are_equal_within_a_message():
    dimensions = Dimensions()
    dimensions.check("prototypes", (3, 64), Array((UpTo("n", 5), 64)))
    dimensions.check("labels", (3,), Array((UpTo("n", 5),), "int64"))
    dimensions.check("others", (4,), Array((UpTo("m", 5),)))
    error = refusal(dimensions.check, "weights", (2, 7), Array((UpTo("n", 5), 7)))
    assert error.reason == "wrong-length"
    assert error.detail == "'weights' has shape (2, 7), but n is 3 elsewhere"
    Dimensions().check("weights", (2, 7), Array((UpTo("n", 5), 7)))  # another message


def test_two_dimensions_of_one_name_in_one_array_are_equal():
    error = refusal(Dimensions().check, "a", (2, 3), Array((UpTo("n", 5), UpTo("n", 5))))
    assert error.detail == "'a' has shape (2, 3), but n is 2 elsewhere"


# Facts


@pytest.mark.parametrize("value", [1, 7, 100])
def test_a_whole_number_in_its_range_is_a_fact(value):
    assert Whole(1, 100).check("k", value) == value


@pytest.mark.parametrize("value", [0, 101, -1, True, 5.0, math.nan, "5", b"5", [5], [], None, 10**30])
def test_another_value_than_a_whole_number_in_its_range_is_refused(value):
    error = refusal(Whole(1, 100).check, "k", value)
    assert error.reason == "malformed"
    assert error.detail == f"k is {value!r}, but must be a whole number from 1 to 100"


def test_what_is_said_of_a_value_is_short():
    assert len(refusal(Whole(1, 100).check, "k", "x" * 10_000).detail) < 120


@pytest.mark.parametrize("value", ["7", "a" * 64, "A.b_c-d"])
def test_a_short_plain_word_is_a_label(value):
    assert Label().check("group", value) == value


@pytest.mark.parametrize("value", ["", "a" * 65, "a b", "a/b", "a\n", "ü", "../../etc/x", 5, True, b"a", ["a"], None])
def test_anything_else_is_no_label(value):
    error = refusal(Label().check, "group", value)
    assert error.reason == "malformed"
    assert error.detail == "a group is 1 to 64 letters, digits, dots, dashes and underscores"
