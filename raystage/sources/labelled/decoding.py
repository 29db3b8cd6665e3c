"""An image file as pixels: 8 bits for each colour, of the size and with the colours that a source asks for."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from raystage.errors import InputError
from raystage.sources.corpus import SourceOptions
from raystage.units import first_line

# Of the formats that Pillow reads. Others start programs (EPS), or hold more than one picture as a rule.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM", "TIFF")
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_COLOURS = {1: "L", 3: "RGB"}
MOST_PIXELS = 2**26


def decoded(content: bytes, name: str, options: SourceOptions, key: str = "data.path") -> np.ndarray:
    """uint8 of shape (channels, height, width). name: for messages. Raises InputError for what is no image.

    A photo is turned as its camera says. Transparency is dropped. Of several pictures in a file the first one counts.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken notes beside the pixels
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check(image, name, key)
                pixels = _fitted(ImageOps.exif_transpose(image), options)
    except InputError:
        raise
    except Exception as error:  # whatever Pillow raises about broken files
        reason = first_line(error)
        reason = "it begins like no image" if "cannot identify" in reason else reason
        problem = f"{name} is no image, or damaged ({reason})"
        raise InputError(f"{problem}; expected one of {', '.join(FORMATS)}", key=key) from None
    return _planes(pixels)


def fitted(pixels: np.ndarray, options: SourceOptions) -> np.ndarray:
    """The same for pixels: uint8 of shape (channels, height, width)."""
    if options.resize is None and options.channels in (None, len(pixels)):
        return pixels
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    return _planes(_fitted(image, options))


def _planes(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, np.uint8)
    return np.ascontiguousarray(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))


def _check(image: Image.Image, name: str, key: str) -> None:
    """Before its pixels are read."""
    if image.mode not in (*_GREY, *_COLOUR):
        problem = f"{name} has pixels of the kind {image.mode}"
        raise InputError(f"{problem}; expected 8 bits for each colour", key=key)
    if image.width * image.height > MOST_PIXELS:
        problem = f"{name} has {image.height} x {image.width} pixels"
        raise InputError(f"{problem}; expected at most {MOST_PIXELS:,}", key=key)


def _fitted(image: Image.Image, options: SourceOptions) -> Image.Image:
    grey = image.mode in _GREY
    image = image.convert(_COLOURS[options.channels or (1 if grey else 3)])
    return _resized(image, options.resize) if options.resize else image


def _resized(image: Image.Image, size: int) -> Image.Image:
    """A square: the middle of the image, as large as fits."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
