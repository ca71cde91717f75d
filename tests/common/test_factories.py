"""A user's own Python, named as `module:name`; what a site's file says of it is tested with the site."""

import own_code
import pytest

from common.errors import UserError
from common.factories import Factory


def test_what_is_given_goes_by_position_and_args_by_name():
    factory = Factory("models", "builtins:dict", {"width": 3})
    assert factory.call(items=[("a", 1)]) == {"a": 1, "width": 3}
    assert factory.call() == {"width": 3}


def test_a_function_that_does_not_take_what_is_given_is_told_with_its_signature():
    with pytest.raises(UserError) as caught:
        Factory("models", "own_code:takes_shape").call(input_shape=(3,), num_classes=2)
    assert str(caught.value) == (
        "models: own_code:takes_shape(input_shape) cannot be called with (input_shape, num_classes): "
        "too many positional arguments."
    )
    with pytest.raises(UserError, match=r"^loss: its args \(a\) do not fit own_code:squared\(outputs, targets\), call"):
        Factory("loss", "own_code:squared", {"a": 1}).function_of("outputs", "targets")


def test_parameters_can_be_asked_for():
    assert Factory("dataset", "own_code:files").takes("data_dir")
    assert not Factory("dataset", "own_code:visits").takes("data_dir")
    assert Factory("models", "own_code:Visit").takes("num_classes")


def test_a_function_is_found_where_its_name_leads():
    assert Factory("loss", "own_code:squared").function_of("outputs", "targets").func is own_code.squared


def test_where_a_module_may_lie_is_said_as_the_caller_says_it():
    with pytest.raises(UserError, match=r"'no_such' cannot be imported \(.*\): look under the bed\.$"):
        Factory("models", "no_such:build", remedy="look under the bed").call()


def test_the_line_that_is_named_is_the_users_own():
    with pytest.raises(UserError, match=r"raised ZeroDivisionError: no layers, own_code\.py line \d+\.$"):
        Factory("models", "own_code:raises").call(input_shape=(3,), num_classes=2)
