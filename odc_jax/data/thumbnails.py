"""From a source's records to pictures small enough for a page."""

import io

from PIL import Image

from odc_jax.data import decode

# WebP quality out of 100: the loss shows at several times the size only.
_QUALITY = 72
# Up to this side an image is kept to the pixel, which takes some 100 bytes.
_LOSSLESS_SIDE = 16


def encode(image: decode.AnyImage, side: int) -> bytes:
  """Makes a small WebP of an image.

  Args:
    image: as `decode.decode` takes it: what a record holds under "image".
    side: of the result, in pixels, the longer one. A smaller image keeps its
      size.

  Returns:
    The bytes of a WebP file.

  Raises:
    DecodeError: the image cannot be read.
  """
  # Twice the side: what a JPEG is decoded at beforehand is not antialiased.
  picture = decode.decode(image, long_side=2 * side)
  picture.thumbnail((side, side), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  lossless = max(picture.size) <= _LOSSLESS_SIDE
  picture.save(file, "WEBP", lossless=lossless, quality=_QUALITY, method=3)
  return file.getvalue()
