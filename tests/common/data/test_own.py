"""What the function that `dataset: module:name` names may return, and what is said of anything else."""

import random

import numpy as np
import own_code
import pytest
import torch
from torch.utils.data import TensorDataset

from common.data.own import load_own
from common.errors import UserError

INPUTS, TARGETS = torch.zeros(4, 2), torch.tensor([0, 2, 1, 2])
PAIR = {"inputs": INPUTS, "targets": TARGETS}


class Items:
    """A Dataset in all but its class."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


DATASET = {"dataset": TensorDataset(INPUTS, TARGETS)}


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    def load(content):
        monkeypatch.setattr(own_code, "GIVEN", content)
        return load_own("own_code:given", tmp_path)

    return load


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (INPUTS, (2,)),
        (torch.zeros(4), ()),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), (3, 8, 8)),
        ((INPUTS, torch.zeros(4)), ((2,), ())),
        ({"a": INPUTS, "b": torch.zeros(4, 5, 7)}, {"a": (2,), "b": (5, 7)}),
    ],
)
def test_inputs_of_any_structure_are_taken_and_their_shape_is_that_of_one_sample(loaded, inputs, shape):
    data = loaded(PAIR | {"inputs": inputs})
    assert data.input_shape == shape
    assert data.split.inputs is inputs  # nothing is copied
    assert data.labels.tolist() == [0, 2, 1, 2]
    assert (data.class_names, data.owners, data.is_test) == (("0", "1", "2"), None, None)


@pytest.mark.parametrize(
    ("item", "shape"),
    [
        ((torch.zeros(2, 3), 1), (2, 3)),
        ((np.zeros((2, 3), np.float32), 1), (2, 3)),
        (({"a": torch.zeros(2), "b": 0.5}, torch.zeros(3)), {"a": (2,), "b": ()}),
        (((torch.zeros(2), 7), 1), ((2,), ())),
    ],
)
def test_a_dataset_is_asked_for_one_item_alone(loaded, item, shape):
    class Once:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            assert index == 0
            return item

    data = loaded({"dataset": Once()})
    assert data.input_shape == shape
    assert (len(data.split), data.targets, data.labels, data.class_names) == (5, None, None, ())


def test_targets_beside_a_dataset_say_its_classes(loaded):
    data = loaded(DATASET | {"targets": TARGETS.tolist(), "class_names": ["a", "b", "c", "never seen"]})
    assert data.labels.tolist() == [0, 2, 1, 2]
    assert data.class_names == ("a", "b", "c", "never seen")


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (torch.tensor([0, 2, 1, 2], dtype=torch.uint8), [0, 2, 1, 2]),
        (torch.tensor([True, False, True, True]), [1, 0, 1, 1]),
        (torch.zeros(4), None),
        (torch.zeros(4, 2, dtype=torch.int64), None),
    ],
)
def test_one_whole_number_a_sample_is_a_class(loaded, targets, labels):
    data = loaded(PAIR | {"targets": targets})
    assert data.targets is targets
    assert (data.labels.tolist() if data.labels is not None else None) == labels


@pytest.mark.parametrize(
    "owners", [["b", "a", "b", "c"], np.array(["b", "a", "b", "c"]), np.array(["b", "a", "b", "c"], dtype=object)]
)
def test_owners_are_text(loaded, owners):
    data = loaded(PAIR | {"owners": owners})
    assert (data.owners.tolist(), data.owner_names) == ([1, 0, 1, 2], ("a", "b", "c"))


@pytest.mark.parametrize("owners", [[10, 9, 10, 70], torch.tensor([10, 9, 10, 70]), np.array([10, 9, 10, 70])])
def test_owners_are_whole_numbers(loaded, owners):
    data = loaded(PAIR | {"owners": owners})
    assert (data.owners.tolist(), data.owner_names) == ([1, 0, 1, 2], ("9", "10", "70"))


@pytest.mark.parametrize(
    "split", [["train", "test", "train", "train"], [False, True, False, False], torch.tensor([0, 1, 0, 0])]
)
def test_the_datas_own_split_is_taken(loaded, split):
    assert loaded(PAIR | {"split": split}).is_test.tolist() == [False, True, False, False]


def test_what_is_none_is_left_out(loaded):
    assert loaded(PAIR | {"owners": None, "dataset": None}).owners is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((INPUTS, TARGETS), "returned is of type tuple (Tensor, Tensor), but must be a dictionary"),
        (DATASET["dataset"], "returned is of type TensorDataset, but must be a dictionary"),
        (PAIR | {"owner": [1]}, "has a key 'owner', but must be a dictionary"),
        (PAIR | {"owner": [1]}, "did you mean 'owners'?"),
        ({"inputs": INPUTS}, "has no targets, but must be a dictionary"),
        ({"owners": ["a"]}, "has no inputs and no targets, but"),
        (PAIR | DATASET, "has both inputs and dataset"),
        (PAIR | {"inputs": INPUTS.numpy()}, "returned is of type tuple (ndarray, Tensor), but must be a pair of"),
        (PAIR | {"inputs": INPUTS.numpy()}, "torch.from_numpy makes tensors of arrays"),
        (PAIR | {"inputs": INPUTS[1:]}, "of different lengths: inputs [3, 2] float32, targets [4] int64"),
        ({"inputs": INPUTS[:0], "targets": TARGETS[:0]}, "returned is empty"),
        (
            {"dataset": (INPUTS, TARGETS)},
            "under dataset is of type tuple (Tensor, Tensor), but must be a torch Dataset.",
        ),
        ({"dataset": Items([1, 2])}, "under dataset is a Dataset whose first item is of type int, but must be (input,"),
        ({"dataset": Items([])}, "under dataset is empty"),
        ({"dataset": Items([("text", 1)])}, "under dataset has the first input (str), but must have a tensor"),
        ({"dataset": Items([(object(), 1)])}, "under dataset has a first input that makes no batch: TypeError"),
        (DATASET | {"targets": TARGETS[1:]}, "beside a Dataset of 4 samples it must be a tensor of as many"),
        (PAIR | {"targets": TARGETS - 1}, "has the target -1 for sample 0: whole numbers are classes"),
        (PAIR | {"targets": TARGETS * 1_000_000}, "has the target 2000000 for sample 1: whole numbers are classes"),
        (PAIR | {"class_names": ["a", "b"]}, "under class_names is ['a', 'b'], but must be a list of 3 or more texts"),
        (PAIR | {"class_names": "abc"}, "under class_names is 'abc'"),
        (PAIR | {"targets": torch.zeros(4), "class_names": ["a"]}, "has class_names, but its targets are no classes"),
        (PAIR | {"owners": ["a", "b"]}, "under owners has the shape [2], but must be one value a sample"),
        (PAIR | {"owners": [0.5] * 4}, "under owners is float64, but must be text or whole numbers"),
        (PAIR | {"owners": [["a"], ["b", "c"], [], []]}, "under owners cannot be read: ValueError"),
        (PAIR | {"split": ["train", "tset", "test", "test"]}, "under split of sample 1 is 'tset', but must be train"),
    ],
)
def test_anything_else_is_told_in_one_sentence_that_names_the_function(loaded, content, words):
    with pytest.raises(UserError) as caught:
        loaded(content)
    sentence = str(caught.value)
    assert sentence.startswith("dataset: what own_code:given returned")
    assert words in sentence
    assert sentence.endswith((".", "?"))
    assert "\n" not in sentence


def test_the_data_folder_is_passed_to_a_function_that_wants_it(tmp_path):
    torch.save(PAIR, tmp_path / "mine.pt")
    assert torch.equal(load_own("own_code:files", tmp_path).split.targets, TARGETS)
    with pytest.raises(UserError, match=r"^dataset: own_code:files raised FileNotFoundError: .*own_code\.py line \d"):
        load_own("own_code:files", tmp_path / "nowhere")


def draws():
    return float(torch.rand(1)), random.random(), float(np.random.rand())  # noqa: NPY002


def test_what_is_drawn_is_the_same_every_time_and_global_generators_stay_as_they_were(tmp_path):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    undisturbed = [draws(), draws()]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    before = draws()
    first = load_own("own_code:three_sources", tmp_path).split.inputs
    assert [before, draws()] == undisturbed
    assert torch.equal(load_own("own_code:three_sources", tmp_path).split.inputs, first)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:load", "dataset: module 'no_such_module' cannot be imported (ModuleNotFoundError: "),
        ("no_such_module:load", "put it into the working folder, or on PYTHONPATH for flwr run, or install it."),
        ("own_code:vists", "dataset: there is no 'vists' in module 'own_code' ("),
        ("own_code:CLASSES", "dataset: own_code:CLASSES is of type int, but must be a function or a class."),
        ("own_code:squared", "dataset: own_code:squared(outputs, targets) cannot be called with (): missing"),
    ],
)
def test_a_function_that_cannot_be_called_is_told_with_its_key(tmp_path, name, words):
    with pytest.raises(UserError) as caught:
        load_own(name, tmp_path)
    assert words in str(caught.value)
