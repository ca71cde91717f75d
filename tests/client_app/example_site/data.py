"""Data of the three kinds, drawn from the global generator, which the site seeds."""

import torch
from torch.utils.data import Dataset, TensorDataset

CLASSES = 3


def images(train=20, test=9):
    def split(count):
        targets = torch.arange(count) % CLASSES
        return torch.randn(count, 3, 8, 8) + targets.view(-1, 1, 1, 1), targets

    return split(train), split(test)


def rows(count, kind):
    inputs = torch.randn(count, 5)
    total = inputs.sum(1)
    match kind:
        case "classes":
            return inputs, (total > 1).long() + (total > -1).long()
        case "binary":
            return inputs, (total > 0).float().unsqueeze(1)
        case "real":
            return inputs, total
        case "too many classes":
            return inputs, torch.arange(count) % 4
    raise ValueError(f"no kind {kind!r}")


def table(train=20, test=9, kind="classes"):
    return rows(train, kind), rows(test, kind)


def table_dataset():
    return tuple(TensorDataset(*rows(count, "classes")) for count in (20, 9))


class Sentences(Dataset):
    """Items ({"tokens", "mask"}, target), or ((tokens, mask), target)."""

    def __init__(self, count, by_name):
        self.tokens = torch.randint(0, 20, (count, 7))
        self.lengths = torch.randint(1, 8, (count,))
        self.by_name = by_name

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        assert type(index) is int
        tokens, mask = self.tokens[index], torch.arange(7) < self.lengths[index]
        return {"tokens": tokens, "mask": mask} if self.by_name else (tokens, mask), int(tokens[0]) % CLASSES


def text(by_name=True):
    return Sentences(17, by_name), Sentences(9, by_name)


def text_tensors():
    return tuple(
        ((torch.randint(0, 20, (count, 7)), torch.ones(count, 7, dtype=torch.bool)), torch.arange(count) % CLASSES)
        for count in (17, 9)
    )


# Mistakes


def as_given(what):
    good = rows(9, "classes")
    inputs, targets = good
    nan = inputs.clone()
    nan[0, 0] = float("nan")
    return {
        "one split": good[0],
        "three splits": (good, good, good),
        "arrays": ((inputs.numpy(), targets.numpy()), good),
        "lengths": (good, (inputs, targets[1:])),
        "empty": ((inputs[:0], targets[:0]), good),
        "empty dataset": (TensorDataset(inputs[:0], targets[:0]), good),
        "loader": (torch.utils.data.DataLoader(TensorDataset(inputs, targets)), good),
        "no pairs": (TensorDataset(inputs), good),
        "narrow": ((inputs[:, :4], targets), good),
        "missing values": ((nan, targets), good),
        "test too wide": (good, (torch.randn(9, 6), targets)),
    }[what]
