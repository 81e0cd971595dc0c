"""The augmentations against Pillow, which torchvision's reference calls."""

import colorsys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from odc_jax.data import augment as lib

LEVEL = 1 / 255


def make_config(**changes):
  off = dict.fromkeys(
    [
      "flip",
      "rotation",
      "brightness",
      "contrast",
      "saturation",
      "hue",
      "jitter_p",
      "gray",
    ],
    0.0,
  )
  off |= {"translate": 0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
  # Frozen, so that it can be a static argument: one compilation per setting.
  return ml_collections.FrozenConfigDict(off | changes)


jitted = jax.jit(lib.augment, static_argnums=0)


def noise(b, h=12, w=10, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (b, h, w, 3), dtype=np.uint8)


def smooth(h=64, w=48):
  y, x = np.mgrid[:h, :w]
  channels = (np.sin(y / 9) + 1, np.cos(x / 7) + 1, np.sin((x + y) / 11) + 1)
  return np.uint8(np.stack(channels, -1) * 100 + 20)


def run(config, images, index=None, seed=0):
  index = np.arange(len(images)) if index is None else index
  got = jitted(config, jax.random.key(seed), images, jnp.int32(index))
  return np.asarray(got)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.6])
@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    (lib.brighten, ImageEnhance.Brightness),
    (lib.contrast, ImageEnhance.Contrast),
    (lib.saturate, ImageEnhance.Color),
  ],
)
def test_blends_are_those_of_pillow(ours, theirs, factor):
  image = noise(1)[0]
  want = np.asarray(theirs(Image.fromarray(image)).enhance(factor)) / 255
  got = ours(jnp.float32(image) / 255, jnp.float32(factor))
  # Pillow rounds the grey image, and its mean, before it blends, and then
  # truncates: up to half a level times |1 - factor|, and one more.
  np.testing.assert_allclose(got, want, atol=1.5 * LEVEL)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.3])
def test_hue_is_that_of_hsv(shift):
  image = noise(1)[0].astype(np.float32) / 255
  image[0, :3] = [[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1]]
  want = np.zeros_like(image)
  for at in np.ndindex(image.shape[:2]):
    h, s, v = colorsys.rgb_to_hsv(*image[at])
    want[at] = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
  got = lib.shift_hue(jnp.asarray(image), jnp.float32(shift))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_hue_is_near_that_of_pillow():
  image = noise(1)[0]
  hsv = np.array(Image.fromarray(image).convert("HSV"))
  hsv[..., 0] += np.uint8(51)  # wraps round; a fifth of a turn
  want = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")) / 255
  got = lib.shift_hue(jnp.float32(image) / 255, jnp.float32(51 / 256))
  # Pillow keeps hue and saturation in 8 bits: a level of hue is 6 / 255 of a
  # channel's way from bottom to top.
  np.testing.assert_allclose(got, want, atol=7 * LEVEL)
  assert np.abs(got - want).mean() < 1.5 * LEVEL


@pytest.mark.parametrize("angle", [-30.0, -2.0, 0.0, 2.0, 90.0])
def test_rotation_is_that_of_pillow(angle):
  image = smooth()
  turned = Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)
  got = np.asarray(jax.jit(lib.rotate)(image, jnp.float32(angle)))
  difference = np.abs(got - np.asarray(turned))
  # Where a corner lies within rounding of the image's edge, Pillow's fixed
  # point and our float may disagree about inside; nowhere else.
  assert (difference.max(-1) > 1.01).mean() < 1e-3
  if angle == 0:
    np.testing.assert_array_equal(got, image)


def test_flip_is_exact_and_as_frequent_as_asked():
  images = noise(400)
  got = run(make_config(flip=0.25), images)
  plain, mirrored = (
    images / np.float32(255),
    images[:, :, ::-1] / np.float32(255),
  )
  is_plain = np.isclose(got, plain, atol=1e-6).all((1, 2, 3))
  is_mirrored = np.isclose(got, mirrored, atol=1e-6).all((1, 2, 3))
  np.testing.assert_array_equal(is_plain, ~is_mirrored)
  assert abs(is_mirrored.mean() - 0.25) < 0.07  # three standard deviations
  np.testing.assert_allclose(run(make_config(flip=1.0), images), mirrored, 1e-6)


def test_gray_has_three_equal_channels_as_often_as_asked():
  images = noise(400)
  got = run(make_config(gray=0.2), images)
  grey = (got[..., 0] == got[..., 1]).all((1, 2))
  assert abs(grey.mean() - 0.2) < 0.06
  want = images[grey] / 255 @ [0.299, 0.587, 0.114]
  np.testing.assert_allclose(got[grey][..., 0], want, atol=1e-6)


def test_translation_moves_whole_pixels_and_fills_with_zeros():
  image = np.full((8, 8, 3), 255, np.uint8)
  got = run(make_config(translate=2), np.stack([image] * 300))
  shifts = set()
  for x in got[..., 0]:
    rows, columns = np.nonzero(x.any(1))[0], np.nonzero(x.any(0))[0]
    assert set(np.unique(x)) <= {0, 1}
    assert x.sum() == len(rows) * len(columns)
    down = rows[0] if rows[0] else rows[-1] - 7
    right = columns[0] if columns[0] else columns[-1] - 7
    shifts.add((int(down), int(right)))
  assert shifts == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
  moved = lib.translate(jnp.float32(noise(1)[0]), jnp.array([1, -2]), 2)
  np.testing.assert_array_equal(moved[1:, :-2], noise(1)[0][:-1, 2:])


def test_jitter_draws_factors_orders_and_places_like_torchvision():
  # One flat colour, so that the result identifies the order of operations.
  images = np.full((4000, 2, 2, 3), (200, 100, 40), np.uint8)
  # Brightness alone: the factor can be read off, uniform on [0.6, 1.4].
  got = run(make_config(brightness=0.4, jitter_p=1.0), images)[:, 0, 0, 1]
  factor = got / (100 / 255)
  assert 0.6 <= factor.min() < 0.601
  assert 1.399 < factor.max() <= 1.4001
  np.testing.assert_allclose(factor.mean(), 1, atol=0.012)
  np.testing.assert_allclose(factor.std(), 0.8 / 12**0.5, atol=0.008)
  # Strength above 1: the lower end is 0, not negative.
  got = run(make_config(brightness=1.5, jitter_p=1.0), images)[:, 0, 0, 2]
  assert 0 <= got.min() < 0.01
  # Applied at all with probability jitter_p.
  got = run(make_config(brightness=0.4, jitter_p=0.3), images)[:, 0, 0, 1]
  assert abs((np.abs(got - 100 / 255) > 1e-6).mean() - 0.3) < 0.025


def test_jitter_order_is_uniform(monkeypatch):
  # With operations that only push a digit onto every pixel, the value of a
  # pixel spells the order that it went through.
  def push(digit, on=True):
    return lambda image: jnp.where(on, image * 5 + digit, image)

  def blend(image, other, factor):
    # Brightness blends with 0, contrast with the mean, saturation with grey;
    # the image below tells them apart by the other image's first two pixels.
    flat = other[0, 0, 0] == other[0, 1, 0]
    digit = jnp.where(other.max() == 0, 1, jnp.where(flat, 2, 3))
    return push(digit, factor != 1)(image)

  monkeypatch.setattr(lib, "_blend", blend)
  monkeypatch.setattr(lib, "shift_hue", lambda image, _: push(4)(image))
  image = np.uint8([[[255, 0, 0], [0, 255, 0]]])
  config = make_config(
    brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=1.0
  )
  # Not `run`: its cache would keep what is traced here.
  index = jnp.arange(4800)
  key = jax.random.key(0)
  images = jnp.asarray(np.stack([image] * 4800))
  fresh = jax.jit(lambda *args: lib.augment(config, *args))
  got = np.asarray(fresh(key, images, index))
  spelt, counts = np.unique(np.round(got[:, 0, 0, 2]), return_counts=True)
  words = {np.base_repr(int(x), 5) for x in spelt}
  assert len(words) == 24
  assert all(sorted(word) == list("1234") for word in words)
  assert counts.min() > 200 - 60  # over four standard deviations
  assert counts.max() < 200 + 60


def test_all_of_it_stays_in_range_and_differs_between_examples():
  config = make_config(
    flip=0.5, rotation=2.0, brightness=0.4, contrast=0.4, saturation=1.0,
    hue=0.5, jitter_p=1.0, gray=0.2, translate=1,
  )  # fmt: skip
  got = run(config, np.stack([smooth(16, 16)] * 16))
  assert got.dtype == np.float32
  assert got.min() >= 0
  assert got.max() <= 1
  assert len({x.tobytes() for x in got}) == 16
  np.testing.assert_array_equal(
    got, run(config, np.stack([smooth(16, 16)] * 16))
  )
  other = run(config, np.stack([smooth(16, 16)] * 16), seed=1)
  assert not any((x == y).all() for x, y in zip(got, other, strict=True))


def test_draws_belong_to_the_example_not_to_its_place():
  config = make_config(
    flip=0.5, rotation=5.0, brightness=0.4, hue=0.2, jitter_p=0.8, translate=2
  )
  images, index = noise(6), np.array([11, 4, 7, 100, 3, 9])
  order = np.array([3, 1, 0, 5, 4, 2])
  got = run(config, images, index)
  np.testing.assert_array_equal(
    run(config, images[order], index[order]), got[order]
  )
  # Copies of one example differ; the first is what it is without the others.
  same = np.stack([images[0]] * 4)
  got = run(config, same, [5, 5, 5, 8])
  assert len({x.tobytes() for x in got}) == 4
  np.testing.assert_array_equal(run(config, same, [5, 6, 7, 8])[0], got[0])


def test_switching_one_operation_leaves_the_draws_of_others():
  images = noise(50)
  flips = run(make_config(flip=0.5), images)
  both = run(make_config(flip=0.5, gray=0.5), images)
  colour = ~(both[..., 0] == both[..., 1]).all((1, 2))
  assert 10 < colour.sum() < 40
  np.testing.assert_array_equal(both[colour], flips[colour])


def test_off_is_the_identity_and_leaves_no_trace():
  images = noise(3)
  np.testing.assert_allclose(run(make_config(), images), images / 255, 1e-6)
  lowered = jitted.lower(
    make_config(), jax.random.key(0), images, jnp.arange(3)
  )
  text = lowered.compile().as_text()
  assert "gather" not in text
  assert "cosine" not in text


def test_hue_alone_and_saturation_alone_work():
  images = noise(4)
  hue = run(make_config(hue=0.5, jitter_p=1.0), images)
  np.testing.assert_allclose(hue.max(-1), images.max(-1) / 255, atol=1e-6)
  run(make_config(saturation=0.5, jitter_p=1.0), images)


def test_normalize_subtracts_the_mean_and_divides():
  config = make_config(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
  images = noise(2)
  want = (images / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
  np.testing.assert_allclose(
    lib.normalize(config, jnp.asarray(images)), want, atol=1e-5
  )
  np.testing.assert_allclose(run(config, images), want, atol=1e-5)
