"""Image files of anybody -> pixels.

Only formats whose decoders execute nothing are read, and a limit of pixels holds before decoding.
"""

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from qdgs_jax.errors import QDGSError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's other formats are not tried: to decode EPS it runs Ghostscript."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
)
MAX_PIXELS = 2**26
"""8192 x 8192: decoded and converted, an image takes less than 2 GiB."""


def read_image(path: Path) -> np.ndarray:
    """Reads one image, [H, W, 3] uint8.

    The image is turned upright by its EXIF orientation. Transparent pixels are composited on white,
    so that colours below them do not show. 16-bit grey is scaled to 8 bits. Of several frames, the
    first is read.

    Raises:
        QDGSError: `path` is no regular file, has more than `MAX_PIXELS`, or cannot be decoded.
    """
    return _read(path, str(path))


def decode_image(content: bytes | memoryview, name: str) -> np.ndarray:
    """The image in the bytes of a file, as `read_image` reads it; `name` is for errors.

    Raises:
        QDGSError: it has more than `MAX_PIXELS`, or cannot be decoded.
    """
    return _read(io.BytesIO(content), name)


def _read(source: Path | io.BytesIO, name: str) -> np.ndarray:
    try:
        if isinstance(source, Path) and not stat.S_ISREG(os.stat(source).st_mode):
            raise QDGSError(f"The image {name} is not a regular file: remove or replace it.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what it could read all the same
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise QDGSError(
                        f"The image {name} has {image.width} x {image.height} pixels, more than "
                        f"{MAX_PIXELS:,}: make it smaller."
                    )
                if image.tile and image.tile[0][0] == "ppm_plain":
                    raise ValueError("its pixels are text, which is slow to read")
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except QDGSError:
        raise
    except Exception as error:  # decoders raise what they like at damaged files
        raise QDGSError(
            f"The image {name} cannot be read ({_explain(error)}): replace it."
        ) from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = np.asarray(image)
        eight_bits = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 -> 255
        eight_bits[grey == image.info.get("transparency", -1)] = 255
        return np.repeat(eight_bits[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers without a white point; save 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    return str(error)[:200] or type(error).__name__
