import gzip
import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from common.data import datasets
from common.data.datasets import DATASETS, open_dataset
from common.data.torchvision_shim import import_torchvision
from common.errors import UserError

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def open_at(tmp_path, monkeypatch):
    """Open a data set where neither the project nor a system package brings Fashion-MNIST."""
    monkeypatch.setattr(datasets, "FASHION_MNIST_PACKAGE_FOLDER", tmp_path / "system")

    def open_at(name, data_dir, **options):
        return open_dataset(name, data_dir, project_dir=tmp_path / "project", **options)

    return open_at


def write_idx(path, array, type_code=8):
    header = bytes([0, 0, type_code, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_pair(folder, prefix, images, labels, suffix=""):
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)


def encode(pixels, image_format="WEBP", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def lossless(pixels):
    return encode(pixels, "WEBP", lossless=True, exact=True)


def write_parquet(path, images, labels, classes=None, image_type=None, **options):
    table = pa.table({"image": pa.array(images, type=image_type), "label": pa.array(labels, type=pa.int16())})
    if classes is not None:
        table = table.replace_schema_metadata({"classes": ",".join(classes)})
    pq.write_table(table, path, **options)


# Fashion-MNIST


def test_committed_fashion_mnist(monkeypatch):
    monkeypatch.setattr(datasets, "FASHION_MNIST_PACKAGE_FOLDER", Path("no-such-folder"))
    data = open_dataset("fashion-mnist", None, project_dir=PROJECT)
    assert data.labels.shape == (10_000,)
    assert data.labels.dtype == torch.int64
    assert torch.bincount(data.labels).tolist() == [1000] * 10
    assert data.class_names[9] == "Ankle boot"
    images = data.read_images(torch.arange(10_000))
    assert images.shape == (10_000, *data.image_shape)
    assert images.dtype == torch.uint8
    pixels = images.double() / 255
    assert pixels.mean() == pytest.approx(data.mean[0], abs=0.002)
    assert pixels.std() == pytest.approx(data.std[0], abs=0.002)


@pytest.mark.parametrize("folder", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_padded_and_read_in_the_order_asked(tmp_path, open_at, rng, folder, suffix):
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    write_idx_pair(tmp_path / folder, "train", images, np.array([3, 1, 9, 0, 3]), suffix)
    write_idx_pair(tmp_path / folder, "t10k", images[:1], np.array([0]), suffix)
    data = open_at("fashion-mnist", tmp_path)
    assert data.labels.tolist() == [3, 1, 9, 0, 3]
    read = data.read_images(torch.tensor([4, 0]))
    assert torch.equal(read[:, 0, 2:30, 2:30], torch.from_numpy(images[[4, 0]]))
    assert read.sum() == images[[4, 0]].sum()
    assert data.read_images(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 32, 32)


def test_fashion_mnist_of_project_then_of_system_package(tmp_path, open_at):
    write_idx_pair(tmp_path / "system", "train", np.zeros((1, 28, 28)), np.array([7]), ".gz")
    assert open_at("fashion-mnist", tmp_path).labels.tolist() == [7]
    write_idx_pair(tmp_path / "project/data/fashion-mnist", "t10k", np.zeros((1, 28, 28)), np.array([2]), ".gz")
    assert open_at("fashion-mnist", tmp_path).labels.tolist() == [2]


def test_missing_fashion_mnist_names_every_place_and_the_package(tmp_path, open_at):
    with pytest.raises(UserError) as caught:
        open_at("fashion-mnist", tmp_path / "mine")
    mine = tmp_path / "mine"
    for place in (
        mine,
        mine / "fashion-mnist",
        mine / "FashionMNIST/raw",
        tmp_path / "project/data",
        tmp_path / "system",
    ):
        assert str(place) in str(caught.value)
    assert "apt install dataset-fashion-mnist" in str(caught.value)


IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / IMAGES).write_bytes(b"no gzip"), f"{IMAGES} cannot be read"),
        (lambda d: (d / IMAGES).write_bytes((d / IMAGES).read_bytes()[:-9]), f"{IMAGES} cannot be read"),
        (lambda d: (d / IMAGES).write_bytes(gzip.compress(b"\0\0")), f"{IMAGES} is no IDX file of bytes in 3"),
        (lambda d: write_idx(d / IMAGES, np.zeros((2, 28))), f"{IMAGES} is no IDX file of bytes in 3"),
        (lambda d: write_idx(d / LABELS, np.zeros(2), type_code=13), f"{LABELS} is no IDX file of bytes in 1"),
        (lambda d: write_idx(d / IMAGES, np.zeros((2, 32, 32))), f"{IMAGES} holds images of 32 x 32, not of 28 x 28"),
        (lambda d: write_idx(d / LABELS, np.zeros(3)), f"{IMAGES} holds 2 images, but .*{LABELS} 3 labels"),
        (lambda d: write_idx(d / LABELS, np.array([0, 10])), f"{LABELS}: sample 1 has label 10, but must have 0..9"),
        (lambda d: (d / LABELS).unlink(), f"{IMAGES} has no labels beside it"),
        (lambda d: write_idx_pair(d, "train", np.zeros((0, 28, 28)), np.zeros(0), ".gz"), "holds no samples"),
    ],
)
def test_damaged_idx_file_is_named(tmp_path, open_at, damage, message):
    write_idx_pair(tmp_path, "train", np.zeros((2, 28, 28)), np.zeros(2), ".gz")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        open_at("fashion-mnist", tmp_path)


@pytest.mark.parametrize(("length", "message"), [(0, "cannot be read"), (30, "should hold .* but has 14")])
def test_truncated_plain_idx_file_is_named(tmp_path, open_at, length, message):
    write_idx_pair(tmp_path, "train", np.zeros((2, 28, 28)), np.zeros(2))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=f"train-images-idx3-ubyte {message}"):
        open_at("fashion-mnist", tmp_path)


# EMNIST


def test_emnist_is_upright_and_resized(tmp_path, open_at, rng):
    upright = rng.integers(0, 256, (62, 28, 28), dtype=np.uint8)
    write_idx_pair(tmp_path / "EMNIST/raw", "emnist-byclass-train", upright.transpose(0, 2, 1), np.arange(62))
    data = open_at("emnist-byclass", tmp_path)
    assert data.num_classes == 62
    assert [data.class_names[label] for label in (0, 9, 10, 35, 36, 61)] == list("09AZaz")
    expected = np.asarray(Image.fromarray(upright[17]).resize((32, 32), Image.Resampling.BILINEAR))
    assert torch.equal(data.read_images(torch.tensor([17]))[0, 0], torch.from_numpy(expected.copy()))
    assert data.read_images(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 32, 32)


def test_missing_emnist_gives_the_download_command(tmp_path, open_at):
    with pytest.raises(
        UserError, match=r"looked for emnist-byclass-train.*EMNIST/raw; .*split='byclass', download=True"
    ):
        open_at("emnist-byclass", tmp_path)


# CIFAR


def write_cifar(root, class_name, monkeypatch, rng, per_file=4):
    """Write CIFAR's pickled batches, and make torchvision expect their check sums."""
    cifar = getattr(import_torchvision().datasets, class_name)
    names = [f"name-{label}" for label in range(100)][: DATASETS[class_name.lower()].num_classes]
    label_key = "labels" if class_name == "CIFAR10" else "fine_labels"
    folder = root / cifar.base_folder
    folder.mkdir(parents=True)
    written = {}

    def write(file_name, content):
        data = pickle.dumps(content)
        (folder / file_name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for attribute in ("train_list", "test_list"):
        sums = []
        for file_name, _ in getattr(cifar, attribute):
            pixels = rng.integers(0, 256, (per_file, 3 * 32 * 32), dtype=np.uint8)
            labels = rng.integers(0, len(names), per_file).tolist()
            sums.append([file_name, write(file_name, {"data": pixels, label_key: labels})])
            written[file_name] = (pixels.reshape(-1, 3, 32, 32), labels)
        monkeypatch.setattr(cifar, attribute, sums)
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": write(cifar.meta["filename"], {cifar.meta["key"]: names})})
    return folder, written


@pytest.mark.parametrize(
    ("class_name", "train_files"),
    [("CIFAR10", [f"data_batch_{number}" for number in range(1, 6)]), ("CIFAR100", ["train"])],
)
def test_cifar_reads_the_training_files_alone(tmp_path, open_at, monkeypatch, rng, class_name, train_files):
    _, written = write_cifar(tmp_path, class_name, monkeypatch, rng)
    data = open_at(class_name.lower(), tmp_path)
    assert data.labels.tolist() == [label for name in train_files for label in written[name][1]]
    assert data.class_names[3] == "name-3"
    pixels = np.concatenate([written[name][0] for name in train_files])
    rows = torch.tensor([len(pixels) - 1, 0, 2])
    assert torch.equal(data.read_images(rows), torch.from_numpy(pixels[rows.numpy()]))
    assert data.image_shape == DATASETS[class_name.lower()].image_shape == (3, 32, 32)
    assert len(data.mean) == len(data.std) == 3


def test_missing_cifar_gives_the_download_command(tmp_path, open_at):
    with pytest.raises(UserError, match=rf"cifar-100-python in {tmp_path}; .*CIFAR100\('{tmp_path}', download=True\)"):
        open_at("cifar100", tmp_path)
    with pytest.raises(UserError, match=r"no place, as data-dir is not set; .*CIFAR10\('DATA-DIR'"):
        open_at("cifar10", None)


@pytest.mark.parametrize("file_name", ["data_batch_2", "batches.meta"])
def test_damaged_cifar_file_is_named(tmp_path, open_at, monkeypatch, rng, file_name):
    folder, _ = write_cifar(tmp_path, "CIFAR10", monkeypatch, rng)
    (folder / file_name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{file_name} is damaged: remove {folder}"):
        open_at("cifar10", tmp_path)
    (folder / file_name).unlink()
    with pytest.raises(UserError, match=f"{file_name} is missing: remove {folder}"):
        open_at("cifar10", tmp_path)


# Tiny-ImageNet


def write_tiny_imagenet(folder, rng, num_classes=200):
    wnids = [f"n{90_000_000 - label:08d}" for label in range(num_classes)]  # not in sorted order
    small = encode(np.zeros((64, 64, 3), dtype=np.uint8), "JPEG")
    for wnid in wnids:
        images_dir = folder / "train" / wnid / "images"
        images_dir.mkdir(parents=True)
        (images_dir / f"{wnid}_0.JPEG").write_bytes(small)
        (images_dir.parent / f"{wnid}_boxes.txt").write_text("")
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    return wnids


def test_tiny_imagenet_resizes_and_converts_grey_images(tmp_path, open_at, rng):
    folder = tmp_path / "tiny-imagenet-200"
    wnids = write_tiny_imagenet(folder, rng)
    (folder / "words.txt").write_text(f"{wnids[1]}\tgoldfish, Carassius auratus\nn00000001\tentity\n")
    grey = encode(rng.integers(0, 256, (64, 64), dtype=np.uint8), "JPEG")
    (folder / "train" / wnids[1] / "images" / f"{wnids[1]}_1.JPEG").write_bytes(grey)
    data = open_at("tiny-imagenet", tmp_path)
    assert data.labels.tolist() == [0, 1, 1, *range(2, 200)]
    assert data.class_names[:2] == (wnids[0], "goldfish")
    images = data.read_images(torch.tensor([2, 0]))
    assert images.shape == (2, 3, 32, 32)
    expected = np.asarray(Image.open(io.BytesIO(grey)).resize((32, 32), Image.Resampling.BILINEAR))
    for channel in range(3):
        assert torch.equal(images[0, channel], torch.from_numpy(expected.copy()))
    assert images[1].sum() == 0
    limited = open_at("tiny-imagenet", folder, max_samples_per_class=1, seed=1)
    assert torch.equal(limited.labels, torch.arange(200))
    assert limited.read_images(torch.tensor([199])).shape == (1, 3, 32, 32)

    damaged = folder / "train" / wnids[0] / "images" / f"{wnids[0]}_0.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{damaged.name}: the image cannot be decoded"):
        open_at("tiny-imagenet", tmp_path).read_images(torch.tensor([0]))
    damaged.unlink()
    with pytest.raises(UserError, match=f"{wnids[0]}/images holds no .JPEG files"):
        open_at("tiny-imagenet", tmp_path)


def test_missing_or_cut_tiny_imagenet(tmp_path, open_at, rng):
    with pytest.raises(
        UserError, match=r"tiny-imagenet-200; unpack http://cs231n\.stanford\.edu/tiny-imagenet-200\.zip"
    ):
        open_at("tiny-imagenet", tmp_path)
    write_tiny_imagenet(tmp_path, rng, num_classes=3)
    with pytest.raises(UserError, match=r"wnids\.txt lists 3 classes, but Tiny-ImageNet has 200"):
        open_at("tiny-imagenet", tmp_path)


# Parquet


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)  # high x wide


def test_parquet_folder_of_lossless_webp(tmp_path, open_at, pixels):
    images = [lossless(image) for image in pixels]
    classes = ["cat", "dog", "eel"]
    write_parquet(tmp_path / "part-1.parquet", images[5:], [1, 1, 0, 0], classes)
    write_parquet(tmp_path / "part-0.parquet", images[:5], [0, 1, 0, 1, 0], classes, row_group_size=2)
    data = open_at("parquet", tmp_path)
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 0, 0]
    assert (data.num_classes, data.class_names) == (3, ("cat", "dog", "eel"))
    assert (data.image_shape, data.mean, data.std) == ((3, 16, 24), (0.5,) * 3, (0.25,) * 3)
    rows = torch.tensor([8, 0, 3, 3, 4, 5])
    expected = torch.from_numpy(pixels[rows.numpy()]).permute(0, 3, 1, 2)
    assert torch.equal(data.read_images(rows), expected)
    assert data.read_images(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 16, 24)


def test_parquet_file_with_hugging_face_structs_and_no_names(tmp_path, open_at, pixels):
    images = [{"bytes": encode(image[..., 0], "PNG"), "path": "a.png"} for image in pixels]
    path = tmp_path / "train.parquet"
    write_parquet(path, images, [2] * 9, image_type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    data = open_at("parquet", path)
    assert (data.num_classes, data.class_names, data.image_shape) == (3, ("0", "1", "2"), (1, 16, 24))
    assert torch.equal(data.read_images(torch.tensor([6]))[0, 0], torch.from_numpy(pixels[6, :, :, 0].copy()))


def test_parquet_decodes_only_what_is_asked_for(tmp_path, open_at, pixels):
    images = [lossless(image) for image in pixels[:3]]
    images.insert(2, b"damaged")
    write_parquet(tmp_path / "a.parquet", images, [0, 1, 0, 1], row_group_size=1)
    data = open_at("parquet", tmp_path)
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.read_images(torch.tensor([3, 1])).shape == (2, 3, 16, 24)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: the image cannot be decoded"):
        data.read_images(torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda image: lossless(image[:8]), r"row 1: the image is 24 x 8 .* is 24 x 16; all must have one size"),
        (lambda image: encode(image[..., 0].astype(np.uint16), "PNG"), r"row 1: the image has pixels of mode I;16"),
        (lambda image: None, r"row 1: the image cannot be decoded"),
    ],
)
def test_parquet_image_unlike_the_first_is_named(tmp_path, open_at, pixels, odd, message):
    write_parquet(tmp_path / "a.parquet", [lossless(pixels[0]), odd(pixels[1])], [0, 0])
    data = open_at("parquet", tmp_path)
    with pytest.raises(UserError, match=message):
        data.read_images(torch.tensor([1]))


def test_parquet_colour_after_grey_is_refused_and_grey_after_colour_converted(tmp_path, open_at, pixels):
    grey, colour = encode(pixels[0, :, :, 0], "PNG"), encode(pixels[0], "PNG")
    write_parquet(tmp_path / "grey.parquet", [grey, colour], [0, 0])
    with pytest.raises(UserError, match=r"row 1: the image has colours"):
        open_at("parquet", tmp_path / "grey.parquet").read_images(torch.tensor([1]))
    write_parquet(tmp_path / "colour.parquet", [colour, grey], [0, 0])
    image = open_at("parquet", tmp_path / "colour.parquet").read_images(torch.tensor([1]))[0]
    assert torch.equal(image[0], image[2])


def write_table(path, **columns):
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b"PAR1 damaged"), r"a\.parquet cannot be read as Parquet"),
        (lambda p: write_table(p, img=[b""], label=[0]), r"has the columns img, label, but must have image and label"),
        (lambda p: write_table(p, image=[b""], label=["cat"]), r"column label is string, but must be an integer"),
        (lambda p: write_table(p, image=[1], label=[0]), r"column image is int64, but must be binary"),
        (lambda p: write_table(p, image=[b""], label=pa.array([None], pa.int8())), r"1 empty values in column label"),
        (lambda p: write_table(p, image=[b"?"], label=[0]), r"a\.parquet, row 0: the image cannot be decoded"),
        (lambda p: write_table(p, image=pa.array([], pa.binary()), label=pa.array([], pa.int8())), r"holds no samples"),
        (
            lambda p: write_parquet(p, [encode(np.zeros((2, 2), np.uint8), "PNG")], [2], ["cat", "dog"]),
            r"sample 0 has label 2, but must have 0\.\.1",
        ),
    ],
)
def test_unusable_parquet_file_is_named(tmp_path, open_at, write, message):
    write(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        open_at("parquet", tmp_path)


def test_parquet_files_of_two_data_sets_are_refused(tmp_path, open_at, pixels):
    for name, classes in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        write_parquet(tmp_path / f"{name}.parquet", [lossless(pixels[0])], [0], classes)
    with pytest.raises(UserError, match=r"b\.parquet names other classes in its metadata than .*a\.parquet"):
        open_at("parquet", tmp_path)


def test_missing_parquet_says_what_is_needed(tmp_path, open_at):
    with pytest.raises(UserError, match=rf"looked for \*\.parquet in {tmp_path}; set data-dir to a \.parquet file"):
        open_at("parquet", tmp_path)


# npz


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz_file_and_folder(tmp_path, open_at, rng, channels):
    images = rng.integers(0, 256, (4, 8, 6) if channels is None else (4, 8, 6, channels), dtype=np.uint8)
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, images=images, labels=np.array([0, 2, 1, 2], dtype=np.uint8))
    for data_dir in (path, tmp_path):
        data = open_at("npz", data_dir)
        assert data.labels.tolist() == [0, 2, 1, 2]
        assert data.num_classes == 3
        assert data.image_shape == (channels or 1, 8, 6)
        assert (data.mean, data.std) == ((0.5,) * (channels or 1), (0.25,) * (channels or 1))
        expected = torch.from_numpy(images.reshape(4, 8, 6, -1)).permute(0, 3, 1, 2)[[3, 1]]
        assert torch.equal(data.read_images(torch.tensor([3, 1])), expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "holds the arrays images, but must hold images and labels"),
        (
            {"images": np.zeros((2, 4, 4)), "labels": np.zeros(2, int)},
            r"images is float64 \[2, 4, 4\], but must be uint8",
        ),
        ({"images": np.zeros((2, 4), np.uint8), "labels": np.zeros(2, int)}, r"images is uint8 \[2, 4\]"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, r"labels is int64 \[3\], .*\[2\]"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2)}, "labels is float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "sample 1 has label -1"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([-2, -1])}, "label -2, but must have 0 or more"),
        ({"images": np.array([{}, {}]), "labels": np.zeros(2, int)}, "cannot be read as .npz without pickled objects"),
    ],
)
def test_unusable_npz_is_named(tmp_path, open_at, arrays, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        open_at("npz", tmp_path)
    assert str(tmp_path / "mine.npz") in str(caught.value)


def test_damaged_missing_or_ambiguous_npz(tmp_path, open_at):
    with pytest.raises(UserError, match=rf"looked for a \.npz file in {tmp_path}; set data-dir to"):
        open_at("npz", tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        open_at("npz", tmp_path)
    (tmp_path / "b.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 2 \.npz files \(a\.npz, b\.npz\)"):
        open_at("npz", tmp_path)


# All sources


def test_unknown_name_lists_the_known_ones(open_at):
    with pytest.raises(UserError, match=r"'mnist', but must be one of fashion-mnist, cifar10, .*, npz"):
        open_at("mnist", None)


def test_limit_keeps_a_seeded_choice_of_each_class(tmp_path, open_at):
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1)
    labels = np.array([0] * 60 + [1] * 38 + [2] * 2)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)

    def choose(seed):
        data = open_at("npz", tmp_path, max_samples_per_class=5, seed=seed)
        assert torch.bincount(data.labels).tolist() == [5, 5, 2]
        values = data.read_images(torch.arange(12)).flatten().tolist()
        assert data.labels.tolist() == labels[values].tolist()
        return values

    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert choose(0) == choose(0) != choose(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_limit_decodes_none_but_the_kept_images(tmp_path, open_at, pixels):
    images = [lossless(image) for image in pixels]
    write_parquet(tmp_path / "a.parquet", images, [0, 1, 2] * 3, row_group_size=2)
    everything = open_at("parquet", tmp_path).read_images(torch.arange(9))
    data = open_at("parquet", tmp_path, max_samples_per_class=1, seed=5)
    assert sorted(data.labels.tolist()) == [0, 1, 2]
    for label, image in zip(data.labels, data.read_images(torch.arange(3)), strict=True):
        assert any(torch.equal(image, everything[row]) for row in range(9) if row % 3 == label)


@pytest.mark.parametrize("name", DATASETS)
def test_table_is_consistent(name):
    info = DATASETS[name]
    known = [value is not None for value in (info.num_classes, info.image_shape, info.mean, info.std)]
    assert all(known) or not any(known)
    if info.image_shape and info.mean and info.std:
        assert len(info.mean) == len(info.std) == info.image_shape[0]
