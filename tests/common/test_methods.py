"""Methods are found by their names, and a plugin's author is told what is wrong with one from outside."""

import inspect
import sys
from pathlib import Path

import pytest
from configs import assert_one_sentence, message_of
from plugin_files import CLIENT_HALF, SERVER_HALF

import server_app.methods
from client_app.methods.base import ClientMethod
from common.config import load_config
from common.errors import UserError
from common.methods import built_in, find, find_client, owners
from common.settings import LocalTraining
from server_app.methods.base import Method


def refusal(name):
    """The sentence with which a run with this method is refused."""
    message = message_of({"method": name})
    assert "\n" not in message
    return message


# Those of the project


def test_the_built_in_methods_are_the_modules_beside_base():
    modules = {path.stem.replace("_", "-") for path in Path(server_app.methods.__file__).parent.glob("*.py")}
    assert built_in() == tuple(sorted(modules - {"base", "--init--"}))
    assert {"fedavg", "local", "mh-pfedhn", "mh-pfedhn-g", "mh-pfedhn-gd"} <= set(built_in())


@pytest.mark.parametrize("name", built_in())
def test_a_built_in_method_has_two_halves_under_its_name(name):
    halves = find(name)
    assert (halves.name, halves.client_name) == (name, name)
    assert issubclass(halves.server, Method)
    assert issubclass(halves.client, ClientMethod)
    module = name.replace("-", "_")
    assert halves.server.__module__ == f"server_app.methods.{module}"
    assert halves.client.__module__ == f"client_app.methods.{module}"
    assert find_client(name) is halves.client
    assert not inspect.isabstract(halves.server)
    assert not inspect.isabstract(halves.client)


@pytest.mark.parametrize("name", ["MH-pFedHN", "mh-pfedhn", "MH-PFEDHN"])
def test_built_in_names_are_taken_in_any_case_of_letters(name):
    assert find(name).name == "mh-pfedhn"


@pytest.mark.parametrize("name", ["base", "", "mh_pfedhn", "mh-pfedh", "fedavg,local", "../base", "__init__"])
def test_a_name_that_is_none_is_answered_with_those_there_are(name):
    with pytest.raises(UserError) as caught:
        find(name)
    message = str(caught.value)
    known = f"{', '.join(built_in())}, or package.module:Class for one from outside"
    said = repr(name) if name else "empty"
    assert message.startswith(f"method is {said}, but must be one of {known}")
    assert refusal(name).startswith(f"method is {said} in the command line, but must be one of {known}")


def test_options_are_those_of_both_halves_the_servers_first():
    keys = list(find("fedavg").options)
    assert keys[0] == "max-delta-norm"
    assert {"local-epochs", "batch-size", "client-lr"} <= set(keys)


@pytest.mark.parametrize(
    ("key", "having"),
    [
        ("hn-lr", ["mh-pfedhn", "mh-pfedhn-g", "mh-pfedhn-gd"]),
        ("gd-fraction", ["mh-pfedhn-g", "mh-pfedhn-gd"]),
        ("temperature", ["mh-pfedhn-gd"]),
        ("local-epochs", ["fedavg", "local", "mh-pfedhn", "mh-pfedhn-g", "mh-pfedhn-gd"]),
        ("num-rounds", []),
        ("nothing", []),
    ],
)
def test_owners_are_the_methods_that_have_a_setting(key, having):
    assert set(owners(key)) >= set(having)
    assert bool(owners(key)) == bool(having)
    assert owners(key) == [name for name in built_in() if key in find(name).options]


# From outside

OWN = 'sharpness: float = option(0.5, "how sharp", above=0)'


def test_a_method_from_outside_is_found_by_module_and_class(plugin):
    name = plugin(settings=OWN)
    halves = find(name)
    package = name.partition(".")[0]
    assert (halves.name, halves.client_name) == (name, f"{package}.client_half:Client")
    assert (halves.server.__name__, halves.client.__name__) == ("Server", "Client")
    assert find_client(halves.client_name) is halves.client
    config = load_config({"method": name, "sharpness": 0.25})
    assert (config.method, config.method_settings) == (name, {"sharpness": 0.25})
    assert config.settings(halves.server.Settings).sharpness == 0.25


def test_its_settings_are_checked_packed_and_listed_as_those_of_the_project(plugin):
    name = plugin(settings=OWN)
    assert message_of({"method": name, "sharpness": 0}) == (
        "sharpness is 0 in the command line, but must be a number above 0."
    )
    assert message_of({"method": name, "sharpnes": 1}).endswith("did you mean 'sharpness'?")
    assert message_of({"method": name, "hn-lr": 1}) == (
        f"Method {name!r} has no hn-lr (the command line): it is a setting of mh-pfedhn, mh-pfedhn-g, mh-pfedhn-gd."
    )
    config = load_config({"method": name, "method-settings": "sharpness=2"})
    assert load_config(config.to_run_config()) == config
    assert config.to_dict()["sharpness"] == 2.0


def test_a_profile_of_hyperparameters_serves_a_method_from_outside(plugin):
    name = plugin(settings="hn_lr: float = option(0.5, 'another rate')")
    assert load_config({"profile": "cifar100+paper-code", "method": name}).method_settings == {"hn-lr": 2e-4}


def test_names_from_outside_keep_their_letters(plugin):
    name = plugin()
    assert load_config({"method": name}).method == name
    assert "did you mean 'Server'?" in refusal(name.replace("Server", "server"))


@pytest.mark.parametrize(
    "name", [":", "module:", ":Class", "a b:Class", "..module:Class", "module:Class:More", "a:b.c"]
)
def test_a_name_of_another_form_is_refused(name):
    assert refusal(name) == f"method is {name!r} in the command line, but must be of the form package.module:Class."


def test_a_module_that_is_not_there_is_named():
    assert refusal("nowhere.at.all:Method") == (
        "method is 'nowhere.at.all:Method' in the command line, but module 'nowhere.at.all' cannot be imported "
        "(ModuleNotFoundError: No module named 'nowhere'): put its package into the working folder or install it in "
        "this environment."
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:\n", "(SyntaxError: invalid syntax (server_half.py, line 1))"),
        ("1 / 0\n", "(ZeroDivisionError: division by zero)"),
        ("import nothing_of_this_name\n", "(ModuleNotFoundError: No module named 'nothing_of_this_name')"),
        ("raise RuntimeError('on two\\n  lines')\n", "(RuntimeError: on two lines)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(plugin, text, words):
    name = plugin(server=text)
    module = name.partition(":")[0]
    assert f"but module {module!r} cannot be imported {words}: put its package " in refusal(name)


def test_a_class_that_is_not_there_is_named(plugin):
    name = plugin().replace("Server", "Sever")
    module = name.partition(":")[0]
    assert refusal(name) == (
        f"method is {name!r} in the command line, but {module} has no 'Sever'; did you mean 'Server'?"
    )
    name = name.replace("Sever", "Zzz")
    assert refusal(name) == f"method is {name!r} in the command line, but {module} has no 'Zzz'."


@pytest.mark.parametrize("text", ["Server = 5", "def Server(config): ...", "class Server: ..."])
def test_a_server_half_that_is_no_method_is_refused(plugin, text):
    name = plugin(server=text)
    assert refusal(name) == (
        f"method is {name!r} in the command line, but must be a subclass of server_app.methods.base.Method."
    )


def test_a_half_that_lacks_a_function_is_refused_with_its_name(plugin):
    name = plugin(server="from server_app.methods.base import Method\nclass Server(Method): ...")
    assert refusal(name) == f"method is {name!r} in the command line, but does not define deploy and round."
    name = plugin(client="from client_app.methods.base import ClientMethod\nclass Client(ClientMethod): ...")
    client = f"{name.partition('.')[0]}.client_half:Client"
    assert refusal(name) == f"The client half of {name} is {client!r}, but does not define load."


def test_a_server_half_that_names_no_client_half_is_told_how(plugin):
    for line in ("", 'client = ""', "client = None", 'client = "fedavg"'):
        name = plugin(server=SERVER_HALF.replace('client = "{package}.client_half:Client"', line))
        module = name.partition(":")[0]
        assert refusal(name) == (
            f"method is {name!r} in the command line, but does not say where its client half is: give the class an "
            f'attribute such as client = "{module}_client:Server".'
        )


def test_a_client_half_that_is_not_there_or_none_is_refused(plugin):
    name = plugin(server=SERVER_HALF.replace(":Client", ":Clint"))
    package = name.partition(".")[0]
    assert refusal(name) == (
        f"The client half of {name} is '{package}.client_half:Clint', but {package}.client_half has no 'Clint'; did "
        "you mean 'Client'?"
    )
    name = plugin(server=SERVER_HALF.replace("client_half", "no_such_module"))
    assert refusal(name).startswith(f"The client half of {name} is ")
    assert "cannot be imported (ModuleNotFoundError: " in refusal(name)
    name = plugin(client="class Client: ...")
    assert refusal(name).endswith("but must be a subclass of client_app.methods.base.ClientMethod.")
    name = plugin(client=CLIENT_HALF.replace("class Client", "class Other") + "\nClient = 7\n")
    assert refusal(name).endswith("but must be a subclass of client_app.methods.base.ClientMethod.")


@pytest.mark.parametrize("half", ["server_settings", "client_settings"])
def test_a_setting_that_is_not_declared_by_option_is_refused(plugin, half):
    name = plugin(**{half: "sharpness: float = 0.5"})
    message = refusal(name)
    assert_one_sentence(message.replace(name, "NAME").replace("Own.sharpness", "FIELD").replace("...", ""))
    assert message == (
        f"Method {name!r}: Own.sharpness must be declared by option(default, help, ...), or nobody could set it."
    )


def test_settings_that_are_no_dataclass_are_refused(plugin):
    name = plugin(settings=OWN, decorator="")
    assert refusal(name) == (
        f"Method {name!r}: Own is no dataclass, so nobody could set what it holds: put "
        "@dataclass(frozen=True, kw_only=True) above it."
    )


def test_a_setting_of_a_type_that_no_configuration_holds_is_refused(plugin):
    name = plugin(settings='folder: Path = option(Path("."), "where")')
    assert refusal(name) == (
        f"Method {name!r}: Own.folder is declared as <class 'pathlib.Path'>, but an option is bool, int, float or str, "
        "or a number with words beside it, such as int | str."
    )


@pytest.mark.parametrize(
    "other",
    [
        'sharpness: float = option(0.25, "how sharp", above=0)',
        'sharpness: float = option(0.5, "how sharp", above=0.1)',
        'sharpness: int = option(1, "how sharp", above=0)',
        'sharpness: float = option(0.5, "how sharp it is", above=0)',
    ],
)
def test_a_setting_that_the_halves_declare_in_two_ways_is_refused(plugin, other):
    name = plugin(server_settings=OWN, client_settings=other)
    assert refusal(name) == (
        f"Method {name!r} declares sharpness in both of its halves, and not alike: put what both read into one "
        "dataclass that both inherit."
    )
    assert load_config({"method": plugin(server_settings=OWN, client_settings=OWN)}).method_settings == {
        "sharpness": 0.5
    }


@pytest.mark.parametrize("key", ["num-rounds", "method", "profile", "base", "description", "method-settings"])
@pytest.mark.parametrize("half", ["server_settings", "client_settings"])
def test_a_setting_that_every_run_has_is_refused(plugin, half, key):
    name = plugin(**{half: f'{key.replace("-", "_")}: int = option(1, "taken")'})
    assert refusal(name) == f"Method {name!r} declares {key}, which is a key of every run: rename it."


def test_a_mistake_in_a_profile_is_said_to_stand_there(profile, plugin):
    name = plugin().replace("Server", "Zzz")
    profile("mine.yaml", f"dataset: cifar10\nmethod: {name}\n")
    assert message_of({"profile": "mine.yaml"}).startswith(f"method is {name!r} in mine.yaml, but ")


def test_a_client_half_is_found_without_its_server_half(plugin):
    name = plugin(server="raise RuntimeError('not on a client')")
    client_name = f"{name.partition('.')[0]}.client_half:Client"
    assert find_client(client_name).__name__ == "Client"
    assert name.partition(":")[0] not in sys.modules


def test_settings_of_a_half_may_be_those_of_the_project(plugin):
    client = f"from common.settings import LocalTraining\n{CLIENT_HALF}\n    Settings = LocalTraining\n"
    config = load_config({"method": plugin(client=client), "local-epochs": 4})
    assert config.settings(LocalTraining).local_epochs == 4
