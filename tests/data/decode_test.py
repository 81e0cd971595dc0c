"""Images of every kind to RGB, and crops against torchvision's definition."""

import io

import numpy as np
import pytest
from PIL import Image

from odc_jax.data import decode as lib


def encode(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def pixels(data):
  image = lib.decode(data)
  assert image.mode == "RGB"
  return np.asarray(image)


def photo(width, height):
  """A smooth picture in colour, so that JPEG hardly changes it."""
  y, x = np.mgrid[:height, :width]
  channels = (x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 30))
  return Image.fromarray(np.uint8(np.stack(channels, -1)))


def rng(seed=0):
  return np.random.Generator(np.random.Philox(seed))


def random_resized_crop(image, size, scale, ratio, rng):
  """Returns one crop."""
  (crops,) = lib.random_resized_crops(
    image, [lib.Crop(size, scale, ratio)], [rng]
  )
  assert crops.shape == (1, size, size, 3)
  return crops[0]


@pytest.mark.parametrize("interpolation", lib.INTERPOLATIONS)
def test_crops_are_resized_as_they_say(interpolation):
  image = Image.fromarray(rng().integers(0, 256, (30, 30, 3), np.uint8))
  whole = lib.Crop(12, (1.0, 1.0), (1.0, 1.0), 1, interpolation)
  ((crop,),) = lib.random_resized_crops(image, [whole], [rng()])
  expected = image.resize((12, 12), lib.INTERPOLATIONS[interpolation])
  np.testing.assert_array_equal(crop, expected)


def test_grey_becomes_three_equal_channels():
  grey = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
  for kind in "PNG", "BMP", "TIFF":
    got = pixels(encode(Image.fromarray(grey), kind))
    np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, -1))
  np.testing.assert_array_equal(pixels(grey)[..., 1], grey)
  np.testing.assert_array_equal(pixels(grey[..., None])[..., 1], grey)


def test_sixteen_bit_grey_keeps_its_upper_byte():
  grey = np.uint16([[0, 255, 256], [32768, 51200, 65535]])
  for kind in "PNG", "TIFF":
    got = pixels(encode(Image.fromarray(grey), kind))
    np.testing.assert_array_equal(got[..., 0], [[0, 0, 1], [128, 200, 255]])


def test_cmyk_jpeg_has_the_right_colours():
  image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
  got = pixels(encode(image, "JPEG", quality=95))
  np.testing.assert_allclose(got, [[[255, 0, 0]]] * np.ones_like(got), atol=4)


def test_palette_is_looked_up():
  image = Image.fromarray(np.uint8([[0, 1], [2, 1]]), "P")
  image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  want = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
  for kind in "PNG", "GIF":
    np.testing.assert_array_equal(pixels(encode(image, kind)), want)


def test_transparency_is_laid_over_white():
  # Black hidden under full transparency must not come out black.
  rgba = np.uint8([[[0, 0, 0, 0], [200, 100, 0, 255], [0, 0, 0, 51]]])
  want = [[[255, 255, 255], [200, 100, 0], [204, 204, 204]]]
  got = pixels(encode(Image.fromarray(rgba)))
  np.testing.assert_array_equal(got, want)
  la = Image.fromarray(rgba[..., [0, 3]], "LA")
  np.testing.assert_array_equal(
    pixels(encode(la))[0, [0, 2]], [[255] * 3, [204] * 3]
  )
  palette = Image.fromarray(np.uint8([[0, 1]]), "P")
  palette.putpalette([1, 2, 3, 4, 5, 6])
  got = pixels(encode(palette, transparency=0))
  np.testing.assert_array_equal(got, [[[255] * 3, [4, 5, 6]]])


def test_one_bit_images_are_black_and_white():
  got = pixels(encode(Image.fromarray(np.array([[True, False]]))))
  np.testing.assert_array_equal(got[..., 2], [[255, 0]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
  upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
  # How a camera stores what is upright once the tag is applied.
  store = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode(
    Image.fromarray(np.ascontiguousarray(store(upright))), exif=exif
  )
  np.testing.assert_array_equal(pixels(data), upright)
  # Crops are drawn in the upright image too: this one is all of it.
  got = lib.resize_center_crop(data, 2, 2)
  want = lib.resize_center_crop(upright, 2, 2)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_shrunk_turned_jpeg_is_cropped_upright(orientation):
  turn = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
  }
  exif = Image.Exif()
  exif[0x0112] = orientation
  upright = photo(601, 803)
  stored = upright.transpose(turn[orientation]) if orientation > 1 else upright
  data = encode(stored, "JPEG", quality=95, exif=exif)
  for get in (
    lambda x: random_resized_crop(x, 64, (0.5, 0.5), (1.0, 1.0), rng(3)),
    lambda x: lib.resize_center_crop(x, 72, 64),
  ):
    difference = np.abs(np.int32(get(data)) - get(upright))
    # JPEG's loss, and the decoder's shrinking instead of the resizer's. Half
    # a pixel beside it would be 2.
    assert difference.mean() < 1


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"<html>404</html>",
    encode(photo(64, 64), "JPEG")[:600],
    encode(photo(64, 64))[:-200],
    np.zeros((4, 4, 3), np.float32),
    np.zeros((4, 4, 4), np.uint8),
    np.zeros((0, 4, 3), np.uint8),
    encode(Image.fromarray(np.float32([[0.5]])), "TIFF"),
  ],
  ids=["empty", "html", "jpeg", "png", "float", "four", "none", "tiff32"],
)
def test_what_cannot_be_read_is_a_value_error_with_a_reason(data):
  calls = [
    lambda: lib.decode(data),
    lambda: lib.resize_center_crop(data, 8, 8),
    lambda: random_resized_crop(data, 8, (0.1, 1.0), (1.0, 1.0), rng()),
  ]
  for call in calls:
    with pytest.raises(lib.DecodeError, match=r"\w{4}") as error:
      call()
    assert isinstance(error.value, ValueError)
    assert "BytesIO" not in str(error.value)


def test_the_whole_image_at_its_own_size_is_unchanged():
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
  got = random_resized_crop(image, 8, (1.0, 1.0), (1.0, 1.0), rng())
  np.testing.assert_array_equal(got, image)
  np.testing.assert_array_equal(lib.resize_center_crop(image, 8, 8), image)


def test_a_crop_is_the_resized_box():
  image = photo(90, 70)
  got = random_resized_crop(image, 32, (0.2, 0.6), (0.75, 1.4), rng(5))
  box = lib.sample_box(90, 70, (0.2, 0.6), (0.75, 1.4), rng(5))
  want = image.resize((32, 32), Image.Resampling.BILINEAR, box=box)
  np.testing.assert_array_equal(got, want)


def test_boxes_are_distributed_as_torchvisions():
  width, height, draws = 500, 400, 4000
  scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
  generator = rng(1)
  boxes = np.array(
    [
      lib.sample_box(width, height, scale, ratio, generator)
      for _ in range(draws)
    ]
  )
  left, top, right, low = boxes.T
  assert left.min() >= 0
  assert top.min() >= 0
  assert right.max() <= width
  assert low.max() <= height
  share = (right - left) * (low - top) / (width * height)
  aspect = np.log((right - left) / (low - top))
  reference = _torchvision_boxes(width, height, scale, ratio, 20000)
  for ours, theirs in (
    (share, reference[0]), (aspect, reference[1]),
    (left / width, reference[2]), (top / height, reference[3]),
  ):  # fmt: skip
    error = 4 * ours.std() * (1 / draws + 1 / 20000) ** 0.5
    assert abs(ours.mean() - theirs.mean()) < error
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.05)
  assert share.min() < 0.09
  assert share.max() > 0.95


def _torchvision_boxes(width, height, scale, ratio, draws):
  """RandomResizedCrop.get_params, all draws at once, and no fallback.

  Rejection leaves the accepted draws' distribution alone; ten failures in a
  row have a probability below 1e-6 at this shape.
  """
  generator = np.random.default_rng(7)
  area = width * height * generator.uniform(*scale, 2 * draws)
  aspect = np.exp(generator.uniform(*np.log(ratio), 2 * draws))
  w = np.round(np.sqrt(area * aspect))
  h = np.round(np.sqrt(area / aspect))
  fits = (w <= width) & (h <= height)
  w, h = w[fits][:draws], h[fits][:draws]
  left = np.floor(generator.random(len(w)) * (width - w + 1))
  top = np.floor(generator.random(len(w)) * (height - h + 1))
  share = w * h / (width * height)
  return share, np.log(w / h), left / width, top / height


@pytest.mark.parametrize(
  ("width", "height", "want"),
  [
    (300, 10, (143, 0, 156, 10)),  # 13 wide: 10 * 4 / 3, rounded
    (10, 300, (0, 143, 10, 156)),
    (1, 1000, (0, 499, 1, 500)),
  ],
)
def test_no_box_that_fits_falls_back_to_the_centre(width, height, want):
  box = lib.sample_box(width, height, (0.9, 1.0), (3 / 4, 4 / 3), rng())
  assert box == want


def test_views_of_one_image_are_independent():
  data = encode(photo(300, 200), "JPEG")
  scale, ratio = (0.08, 1.0), (0.75, 1.33)
  (both,) = lib.random_resized_crops(
    data, [lib.Crop(16, scale, ratio, views=2)], [rng(1), rng(2)]
  )
  assert (both[0] != both[1]).any()
  for view in range(2):
    alone = random_resized_crop(data, 16, scale, ratio, rng(1 + view))
    # One of them may have let the decoder shrink more than both could.
    assert np.abs(np.int32(both[view]) - alone).mean() < 2


def test_multi_crop_cuts_every_kind_with_its_own_size_and_scale():
  image = photo(300, 200)
  ratio = (0.75, 1.33)
  kinds = [
    lib.Crop(32, (0.5, 1.0), ratio, views=2),
    lib.Crop(12, (0.05, 0.1), ratio, views=3),
  ]
  large, small = lib.random_resized_crops(
    image, kinds, [rng(i) for i in range(5)]
  )
  assert large.shape == (2, 32, 32, 3)
  assert small.shape == (3, 12, 12, 3)
  for view in range(5):
    kind, crop = (kinds[0], large) if view < 2 else (kinds[1], small)
    want = random_resized_crop(image, kind.size, kind.scale, ratio, rng(view))
    np.testing.assert_array_equal(crop[view - 2 * (view >= 2)], want)
  # Red grows with x: a crop of a tenth of the area spans less of it.
  spans = [np.ptp(np.int32(crop[..., 0])) for crop in (*large, *small)]
  assert min(spans[:2]) > max(spans[2:])


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (7, 5)])
def test_images_smaller_than_the_crop_work(size):
  image = Image.new("RGB", size, (9, 8, 7))
  for got in (
    random_resized_crop(encode(image), 32, (0.08, 1.0), (0.75, 1.3), rng()),
    lib.resize_center_crop(encode(image), 40, 32),
    lib.resize_squash(encode(image), 40, 32),
  ):
    np.testing.assert_array_equal(got, np.uint8([9, 8, 7]) + np.zeros_like(got))


def test_center_crop_is_torchvisions():
  image = photo(101, 60)
  resized = image.resize((67, 40), Image.Resampling.BILINEAR)  # 67.3
  # (67 - 32) / 2 = 17.5 rounds to the even 18.
  want = resized.crop((18, 4, 50, 36))
  np.testing.assert_array_equal(lib.resize_center_crop(image, 40, 32), want)
  with pytest.raises(ValueError, match="larger"):
    lib.resize_center_crop(image, 32, 40)


def test_squashing_is_torchvisions_resize_twice():
  image = photo(101, 60)
  resized = image.resize((67, 40), Image.Resampling.BILINEAR)  # 67.3
  want = resized.resize((32, 32), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(lib.resize_squash(image, 40, 32), want)
  # One resizing would have given something else.
  once = image.resize((32, 32), Image.Resampling.BILINEAR)
  assert np.any(np.asarray(once) != want)
  # Nothing is cut off.
  halves = Image.new("RGB", (90, 30), (255, 0, 0))
  halves.paste((0, 0, 255), (0, 0, 45, 30))
  got = lib.resize_squash(halves, 20, 16)
  np.testing.assert_array_equal(
    got[:, [0, -1]], [[[0, 0, 255], [255, 0, 0]]] * 16
  )


@pytest.fixture
def opened_images(monkeypatch):
  """Returns the list of Pillow images that were opened meanwhile."""
  seen, open_image = [], lib.opened.open_image

  def listening(image):
    found = open_image(image)
    seen.append(found.image)
    return found

  monkeypatch.setattr(lib.opened, "open_image", listening)
  return seen


def test_decoding_at_reduced_size_changes_little(opened_images):
  image = photo(1203, 905)
  data = encode(image, "JPEG", quality=95)
  got = lib.resize_center_crop(data, 64, 64)
  want = lib.resize_center_crop(image, 64, 64)
  assert opened_images[0].size == (151, 114)  # 1/8, rounded up
  assert np.abs(np.int32(got) - want).mean() < 1


def test_a_large_photograph_is_decoded_at_reduced_size(opened_images):
  """24 megapixels: nothing of the size of the whole image is made."""
  data = encode(photo(6000, 4000), "JPEG", quality=80)
  got = random_resized_crop(data, 64, (0.9, 1.0), (1.4, 1.6), rng())
  assert opened_images[0].size == (750, 500)
  want = random_resized_crop(
    photo(6000, 4000), 64, (0.9, 1.0), (1.4, 1.6), rng()
  )
  assert np.abs(np.int32(got) - want).mean() < 2
