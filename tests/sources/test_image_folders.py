"""Images in class folders: which files count, how they become pixels, and what is said about those that are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelled_files import CLASSES, images, png, write_folders
from raystage.errors import InputError
from raystage.sources.corpus import SourceOptions
from raystage.sources.labelled import decoding
from raystage.sources.table import read_corpus


def read(folder: Path, **options: object) -> list[tuple[np.ndarray, int | None]]:
    corpus = read_corpus("images", (str(folder),), SourceOptions(**options))
    return [(one.content.content, one.content.label) for piece in corpus.pieces(0) for one in piece.read()]


def save(file: Path, pixels: np.ndarray | bytes, kind: str = "PNG", mode: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, bytes):
        file.write_bytes(pixels)
    else:
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(file, kind)
    return file


def square(size: int = 8, value: int = 7) -> np.ndarray:
    return np.full((size, size), value, np.uint8)


def test_an_image_is_the_same_in_every_format_that_loses_nothing(tmp_path: Path) -> None:
    (pixels, _), (other, _) = images(2, (8, 8, 3))
    for number, kind in enumerate(("PNG", "BMP", "PPM", "TIFF")):
        save(tmp_path / kind / f"a/{number}.{kind.lower()}", pixels, kind)
        save(tmp_path / kind / "b/1.png", other)
    corpora = [read_corpus("images", (str(tmp_path / kind),)) for kind in ("PNG", "BMP", "PPM", "TIFF")]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    ((found, label), _) = sorted(read(tmp_path / "BMP"), key=lambda one: one[1])
    assert (found.shape, label) == ((3, 8, 8), 0)
    assert np.array_equal(found, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)])
def test_every_kind_of_pixels_is_grey_or_colour(mode: str, channels: int, tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / name / "1.png", np.zeros((8, 8, 3), np.uint8), mode=mode)
    assert read(tmp_path)[0][0].shape == (channels, 8, 8)
    for asked in (1, 3):
        assert read(tmp_path, channels=asked)[0][0].shape == (asked, 8, 8)


def test_the_middle_of_an_image_is_scaled(tmp_path: Path) -> None:
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 3:13] = 200  # the filter reaches one pixel further than the middle
    for name in "ab":
        save(tmp_path / name / "1.png", wide)
    (found, _), _ = read(tmp_path, resize=4)
    assert np.array_equal(found, np.full((1, 4, 4), 200))


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(128, dtype=np.uint8).reshape(8, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # it has to be turned by 90 degrees
    for name in "ab":
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "1.png", exif=exif)
    assert np.array_equal(read(tmp_path)[0][0][0], np.rot90(np.asarray(image), -1))


def test_images_in_deeper_folders_and_under_links_are_read_and_other_files_are_not(tmp_path: Path) -> None:
    write_folders(tmp_path / "a", images(12))
    (tmp_path / "a/cat/notes.txt").write_text("no image")
    (tmp_path / "a/cat/.hidden.png").write_bytes(b"")
    (tmp_path / "a/.git").mkdir()
    (tmp_path / "a/cat/001.png").rename(tmp_path / "moved.png")
    (tmp_path / "a/cat/more").mkdir()
    (tmp_path / "a/cat/more/LINK.PNG").symlink_to(tmp_path / "moved.png")
    assert sorted(label for _, label in read(tmp_path / "a")) == sorted([0, 1, 2] * 4)
    assert len(read(tmp_path / "a", files="00[0-5].png")) == 5
    several = read_corpus("images", (str(tmp_path / "a"), str(write_folders(tmp_path / "b", images(6, seed=1)))))
    assert (len(several), several.samples(0).classes, several.samples(0).train) == (18, CLASSES, (6, 6, 6))


def test_a_folder_of_images_has_no_classes(tmp_path: Path) -> None:
    for number, (pixels, _) in enumerate(images(10)):
        save(tmp_path / f"{number}.png", pixels)
    found = read_corpus("images", (str(tmp_path),)).samples(0.5)
    assert (found.classes, found.num_classes, found.image) == ((), 0, (1, 8, 8))
    assert sum(found.train + found.held_out) == 10
    assert {label for _, label in read(tmp_path)} == {None}


# --- bad data -----------------------------------------------------------------------------------


def test_images_of_mixed_size_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", square())
    save(tmp_path / "b/2.png", square(16))
    with pytest.raises(
        InputError, match=r"^data.path: '.*1.png' has 8 x 8 pixels, but '.*2.png' has 16 x 16 pixels; expected one size"
    ):
        read_corpus("images", (str(tmp_path),)).samples(0)
    save(tmp_path / "a/3.png", square(9))
    with pytest.raises(InputError, match=r"^data.path: '.*a/1.png' has 8 x 8 pixels, but '.*a/3.png' has 9 x 9"):
        read(tmp_path)
    assert len(read(tmp_path, resize=8)) == 3


def test_grey_and_colour_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", square())
    save(tmp_path / "a/2.png", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "b/1.png", square())
    with pytest.raises(InputError, match=r"'.*1.png' has 1 of colour, but '.*2.png' has 3 of colour; .* data.channels"):
        read(tmp_path)


WHOLE = png(images(1)[0][0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it begins like no image"),
        (b"no image", "it begins like no image"),
        (WHOLE[:60], "expected one of PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "it begins like no image"),
    ],
)
def test_an_unreadable_image_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    write_folders(tmp_path, images(6))
    save(tmp_path / "cat/broken.png", content)
    with pytest.raises(InputError, match=rf"^data.path: '.*cat/broken.png' is no image, or damaged .*{said}"):
        read(tmp_path)


def test_pixels_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", np.full((8, 8), 1000, np.uint16))
    save(tmp_path / "b/1.png", square())
    with pytest.raises(InputError, match=r"^data.path: '.*a/1.png' has pixels of the kind I;16; expected 8 bits"):
        read(tmp_path)


def test_huge_images_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_PIXELS", 63)
    write_folders(tmp_path, images(3))
    with pytest.raises(InputError, match=r"^data.path: '.*png' has 8 x 8 pixels; expected at most 63"):
        read(tmp_path)


@pytest.mark.parametrize("case", ["nothing", "file", "empty class", "loose", "one side", "both kinds", "remote"])
def test_what_is_no_folder_of_classes_is_named(case: str, tmp_path: Path) -> None:
    write_folders(tmp_path / "a", images(6))
    path, options = (str(tmp_path / "a"),), SourceOptions()
    match case:
        case "nothing":
            path, said = (str(tmp_path / "none"),), r"data.path: found no folder '.*none'; expected one with a folder"
        case "file":
            path, said = (str(save(tmp_path / "b.png", square())),), "data.path: found no folder '.*b.png'"
        case "remote":
            path, said = ("s3://bucket/images",), "data.path: found no folder 's3://bucket/images'"
        case "empty class":
            (tmp_path / "a/wolf").mkdir()
            said = r"data.path: found no image \*.png, .* in '.*wolf'; expected images of every class, or no such"
        case "loose":
            save(tmp_path / "a/1.png", square())
            said = "data.path: found the image '.*a/1.png' beside the folder 'bird'; expected each image in the folder"
        case "one side":
            save(tmp_path / "b/1.png", square())
            options = SourceOptions(validation_path=(str(tmp_path / "b"),))
            said = "data.validation_path: found folders of classes on one side only"
        case "both kinds":
            save(tmp_path / "b/1.png", square())
            path, said = (*path, str(tmp_path / "b")), "data.path: found folders of classes beside folders of images"
    with pytest.raises(InputError, match=f"^{said}"):
        read_corpus("images", path, options).samples(0.1)


def test_an_image_that_changes_after_it_was_planned_with_is_noticed(tmp_path: Path) -> None:
    write_folders(tmp_path, images(6))
    corpus = read_corpus("images", (str(tmp_path),))
    pieces = corpus.pieces(0)
    save(tmp_path / "cat/001.png", square())
    with pytest.raises(InputError, match="cat' changed after it was planned with"):
        [one for piece in pieces for one in piece.read()]


def test_names_that_are_no_utf8_are_read_but_are_no_classes(tmp_path: Path) -> None:
    write_folders(tmp_path, images(6))
    (tmp_path / "cat/001.png").rename(tmp_path / "cat" / os.fsdecode(b"\xff.png"))
    assert len(read(tmp_path)) == 6
    (tmp_path / "cat").rename(tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(InputError, match=r"^data.classes: .* which is no valid text; expected the name of a class"):
        read(tmp_path)
