"""Parquet: files and folders, lossless, decoded row by row, and an odd image or file named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import encode, lossless, write_parquet

from common.errors import UserError


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
    assert (data.image_shape, data.normalisation, data.owners, data.is_test) == ((3, 16, 24), None, None, None)
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


def test_parquet_says_how_much_is_held_once_all_is_read(tmp_path, open_at):
    noise = np.random.default_rng(0).bytes(100_000)
    images = [lossless(np.zeros((8, 8, 3), np.uint8)), *[noise + bytes([number]) for number in range(9)]]
    structs = [{"bytes": image, "path": "a.png"} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_parquet(tmp_path / "a.parquet", structs, [0] * 10, image_type=kind, row_group_size=3)
    assert 900_000 < open_at("parquet", tmp_path).source.num_bytes < 1_000_000


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


def write_owned(path, pixels, **columns):
    count = len(next(iter(columns.values())))
    images = pa.array([lossless(image) for image in pixels[:count]])
    write_table(path, image=images, label=pa.array([0] * count, pa.int8()), **columns)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array(["zoe", "ann", "zoe"]), ("ann", "zoe")),
        (pa.array(["zoe", "ann", "zoe"]).dictionary_encode(), ("ann", "zoe")),
        (pa.array(["zoe", "ann", "zoe"], pa.large_string()), ("ann", "zoe")),
        (pa.array([30, 4, 30], pa.int8()), ("4", "30")),
    ],
)
def test_owners_are_a_column_of_text_or_whole_numbers(tmp_path, open_at, pixels, values, names):
    write_owned(tmp_path / "a.parquet", pixels, client=values)
    write_owned(tmp_path / "b.parquet", pixels, client=values.slice(1))
    data = open_at("parquet", tmp_path)
    assert (data.owner_names, data.owners.tolist()) == (names, [1, 0, 1, 0, 1])


@pytest.mark.parametrize("values", [["test", "train"], [True, False], pa.array([1, 0], pa.int8())])
def test_a_split_is_a_column_of_words_or_flags_of_test_samples(tmp_path, open_at, pixels, values):
    write_owned(tmp_path / "a.parquet", pixels, split=values)
    assert open_at("parquet", tmp_path).is_test.tolist() == [True, False]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"client": ["ann", None]}, "has 1 empty values in column client"),
        ({"client": [0.5, 1.5]}, "column client is double, but must be text"),
        ({"client": ["ann", ""]}, "column client is empty for sample 1"),
        ({"split": ["train", "dev"]}, "column split of sample 1 is 'dev', but must be train or test"),
    ],
)
def test_an_unusable_column_of_owners_or_of_a_split_is_named(tmp_path, open_at, pixels, columns, message):
    write_owned(tmp_path / "a.parquet", pixels, **columns)
    with pytest.raises(UserError, match=message):
        open_at("parquet", tmp_path)


@pytest.mark.parametrize("owned", ["a.parquet", "b.parquet"])
def test_files_with_and_without_owners_are_refused(tmp_path, open_at, pixels, owned):
    for name in ("a.parquet", "b.parquet"):
        write_owned(tmp_path / name, pixels, split=["train", "test"], **({"client": [1, 2]} if name == owned else {}))
    with pytest.raises(UserError, match=r"b\.parquet has the columns .* client and split must be in all files or in"):
        open_at("parquet", tmp_path)


def test_a_source_for_one_reading_keeps_no_file_in_memory(tmp_path, open_at, pixels):
    write_parquet(tmp_path / "a.parquet", [lossless(image) for image in pixels], [0] * 9, row_group_size=4)
    source, rows = open_at("parquet", tmp_path).source, np.array([8, 1])
    images = source.once().read(rows)
    assert not source.columns
    assert torch.equal(images, source.read(rows))
    assert len(source.columns) == 2


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


def test_limit_decodes_none_but_the_kept_images(tmp_path, open_at, pixels):
    images = [lossless(image) for image in pixels]
    write_parquet(tmp_path / "a.parquet", images, [0, 1, 2] * 3, row_group_size=2)
    everything = open_at("parquet", tmp_path).read_images(torch.arange(9))
    data = open_at("parquet", tmp_path).limited(1, seed=5)
    assert sorted(data.labels.tolist()) == [0, 1, 2]
    for label, image in zip(data.labels, data.read_images(torch.arange(3)), strict=True):
        assert any(torch.equal(image, everything[row]) for row in range(9) if row % 3 == label)
