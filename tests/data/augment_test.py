"""The augmentations against Pillow, which torchvision's reference calls."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy import signal

from odc_jax.data import augment as lib
from odc_jax.data import color

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
      "blur",
      "solarize",
      "lighting",
    ],
    0.0,
  )
  off |= {"blur_sigma": (0.1, 2.0), "translate": 0, "sobel": False}
  off |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
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


@pytest.mark.parametrize("angle", [-30.0, -2.0, 0.0, 2.0, 90.0])
@pytest.mark.parametrize("interpolation", lib.ROTATIONS)
def test_rotation_is_that_of_pillow(interpolation, angle):
  nearest = interpolation == "nearest"
  # Noise would tell a pixel from its neighbour, and so the nearest needs it.
  image = noise(1, 64, 48)[0] if nearest else smooth()
  turned = Image.fromarray(image).rotate(
    angle, Image.Resampling[interpolation.upper()]
  )
  rotate = functools.partial(lib.rotate, interpolation=interpolation)
  got = np.asarray(jax.jit(rotate)(image, jnp.float32(angle)))
  difference = np.abs(got - np.asarray(turned))
  # Where a corner lies within rounding of the image's edge, Pillow's fixed
  # point and our float may disagree about inside; nowhere else. So they may
  # about the nearest of two neighbours.
  assert (difference.max(-1) > 1.01).mean() < 1e-3
  if angle == 0:
    np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize("angle", [0.0, 17.0])
@pytest.mark.parametrize("interpolation", lib.ROTATIONS)
def test_rotation_of_the_mirrored_image(interpolation, angle):
  image = jnp.asarray(smooth(31, 40))
  got = lib.rotate(
    image, jnp.float32(angle), jnp.array(True), interpolation=interpolation
  )
  want = lib.rotate(
    image[:, ::-1], jnp.float32(angle), interpolation=interpolation
  )
  # As against Pillow, an edge pixel may fall inside or outside.
  assert (np.abs(got - want).max(-1) > 0.01).mean() < 2e-3
  if angle == 0:
    np.testing.assert_array_equal(got, image[:, ::-1])


def compare_blur(image, sigma):
  """Returns our blur of 0 to 255 less Pillow's."""
  theirs = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
  ours = jax.jit(lambda *args: lib.blur(*args, most=5.0))
  got = ours(jnp.float32(image), jnp.float32(sigma))
  return np.asarray(got) - np.asarray(theirs, np.float32)


@pytest.mark.parametrize("shape", [(64, 48), (3, 2), (1, 5)])
@pytest.mark.parametrize("sigma", [0.13, 0.57, 1.03, 1.87, 4.3])
def test_blur_rounded_after_each_pass_is_that_of_pillow(
  sigma, shape, monkeypatch
):
  unrounded = lib._box_blur
  monkeypatch.setattr(
    lib, "_box_blur", lambda *args: jnp.floor(unrounded(*args) + 0.5)
  )
  # At these sigmas no weighted sum ends on half a level, where Pillow's fixed
  # point and our float might round differently.
  assert not compare_blur(noise(1, *shape)[0], sigma).any()


@pytest.mark.parametrize("shape", [(64, 48), (3, 2), (1, 5)])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_that_of_pillow_up_to_its_rounding(sigma, shape):
  # One level does not do: each of six passes rounds by up to half of one, and
  # an average does not enlarge an error, so at most 3. Measured: 2.97 in noise
  # at sigma 0.1, 2.16 in the smooth image at sigma 0.5.
  for image in (noise(1, *shape)[0], smooth(*shape)):
    difference = compare_blur(image, sigma)
    assert np.abs(difference).max() < 3
    # At sigma 1 the weights are sixths and many sums end on half a level, all
    # of which Pillow takes down: 0.49 on average in noise. Else it is 0.02.
    if difference.size > 1000:
      assert np.abs(difference.mean()) < (0.5 if sigma == 1 else 0.03)


def test_blur_of_sigma_0_is_the_identity_and_spare_taps_change_nothing():
  image = jnp.float32(noise(1)[0]) / 255
  np.testing.assert_array_equal(lib.blur(image, jnp.float32(0), 2.0), image)
  few = lib.blur(image, jnp.float32(0.7), 0.7)
  many = lib.blur(image, jnp.float32(0.7), 9.0)
  np.testing.assert_allclose(few, many, atol=1e-6)


def test_blur_is_as_frequent_as_asked_and_its_sigma_uniform():
  # A white pixel on black: how much of it is left tells sigma.
  images = np.zeros((800, 9, 9, 3), np.uint8)
  images[:, 4, 4] = 255
  config = make_config(blur=0.4, blur_sigma=(0.5, 1.5))
  got = run(config, images)[:, 4, 4, 0]
  is_blurred = got != 1
  assert abs(is_blurred.mean() - 0.4) < 0.055  # over three standard deviations
  sigmas = np.linspace(0.5, 1.5, 101, dtype=np.float32)
  white = jnp.float32(images[0]) / 255
  left = jax.vmap(lambda s: lib.blur(white, s, 1.5)[4, 4, 0])(sigmas)
  sigma = np.interp(got[is_blurred], left[::-1], sigmas[::-1])
  assert 0.5 <= sigma.min() < 0.52
  assert 1.48 < sigma.max() <= 1.5
  np.testing.assert_allclose(sigma.mean(), 1, atol=0.05)
  np.testing.assert_allclose(sigma.std(), 1 / 12**0.5, atol=0.03)


def test_solarisation_is_that_of_pillow_as_often_as_asked():
  levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  image = np.concatenate([levels, levels[::-1], levels.transpose(1, 0, 2)], -1)
  want = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=128))
  got = run(make_config(solarize=0.2), np.stack([image] * 400))
  is_plain = np.isclose(got, image / 255, atol=1e-6).all((1, 2, 3))
  is_solarised = np.isclose(got, want / 255, atol=1e-6).all((1, 2, 3))
  np.testing.assert_array_equal(is_plain, ~is_solarised)
  assert abs(is_solarised.mean() - 0.2) < 0.06


def test_sobel_is_a_correlation_of_the_normalised_mean():
  config = make_config(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), sobel=True)
  images = noise(2)
  x = ((images / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]).mean(-1)
  kernels = [
    [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
    [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
  ]
  want = np.stack(
    [
      [signal.correlate2d(image, kernel, mode="same") for kernel in kernels]
      for image in x
    ]
  ).transpose(0, 2, 3, 1)
  assert want.shape == (2, 12, 10, 2)
  np.testing.assert_allclose(run(config, images), want, atol=1e-5)
  np.testing.assert_allclose(
    lib.normalize(config, jnp.asarray(images)), want, atol=1e-5
  )
  np.testing.assert_allclose(
    lib.normalize(config, jnp.float32(images)), want, atol=1e-5
  )
  # By hand: a ramp that rises by 1 to the right, a white border beyond none.
  ramp = jnp.broadcast_to(jnp.arange(4.0)[None, :, None], (3, 4, 3))
  got = lib.sobel(ramp)
  np.testing.assert_allclose(got[1, 1:3], [[-8, 0], [-8, 0]], atol=1e-6)
  np.testing.assert_allclose(got[0, 1], [-6, -4], atol=1e-6)


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

  monkeypatch.setattr(color, "_blend", blend)
  monkeypatch.setattr(color, "shift_hue", lambda image, _: push(4)(image))
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


def test_lighting_draws_a_colour_for_every_image():
  images = noise(400, 2, 2)
  shifts = run(make_config(lighting=0.1), images) - images / 255
  assert np.ptp(shifts, axis=(1, 2)).max() < 1e-5
  shifts = shifts[:, 0, 0]
  # The covariance is that of ImageNet's pixels, times 0.1^2.
  axes = np.array(color._COLOR_AXES) * color._COLOR_DEVIATIONS
  want = 0.01 * axes @ axes.T
  np.testing.assert_allclose(np.cov(shifts.T), want, rtol=0.2)
  np.testing.assert_allclose(shifts.mean(0), 0, atol=0.003)


def test_all_of_it_stays_in_range_and_differs_between_examples():
  config = make_config(
    flip=0.5, rotation=2.0, brightness=0.4, contrast=0.4, saturation=1.0,
    hue=0.5, jitter_p=1.0, gray=0.2, blur=0.5, solarize=0.2, translate=1,
  )  # fmt: skip
  got = run(config, np.stack([smooth(16, 16)] * 16))
  assert got.dtype == np.float32
  # The blur's weights add up to 1 but for rounding.
  assert got.min() >= -1e-6
  assert got.max() <= 1 + 1e-6
  assert len({x.tobytes() for x in got}) == 16
  np.testing.assert_array_equal(
    got, run(config, np.stack([smooth(16, 16)] * 16))
  )
  other = run(config, np.stack([smooth(16, 16)] * 16), seed=1)
  assert not any((x == y).all() for x, y in zip(got, other, strict=True))


def test_draws_belong_to_the_example_not_to_its_place():
  config = make_config(
    flip=0.5, rotation=5.0, brightness=0.4, hue=0.2, jitter_p=0.8, blur=0.5,
    solarize=0.5, translate=2,
  )  # fmt: skip
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


def test_switching_on_blur_and_solarisation_leaves_the_draws_of_others():
  images = noise(80)
  recipe = {
    "flip": 0.5, "rotation": 5.0, "brightness": 0.4, "contrast": 0.4,
    "hue": 0.1, "jitter_p": 0.8, "gray": 0.2, "translate": 2,
  }  # fmt: skip
  before = run(make_config(**recipe), images)
  after = run(make_config(**recipe, blur=0.5, solarize=0.5), images)
  same = np.isclose(after, before, atol=1e-6).all((1, 2, 3))
  assert 8 < same.sum() < 33  # a quarter, within three standard deviations
  blurred = run(make_config(**recipe, blur=1.0, solarize=0.5), images)
  differs = ~np.isclose(blurred, after, atol=1e-6).all((1, 2, 3))
  assert 26 < differs.sum() < 54  # those not blurred before, half
  # Solarisation draws what it draws without the blur.
  solarised = run(make_config(**recipe, solarize=0.5), images)
  alone = ~np.isclose(solarised, before, atol=1e-6).all((1, 2, 3))
  assert not (alone & same).any()


def make_views(b=5, sizes=((2, 16), (3, 8))):
  return tuple(
    jnp.asarray(noise(b * v, size, size, seed=size)).reshape(
      b, v, size, size, 3
    )
    for v, size in sizes
  )


RECIPE = {
  "flip": 0.5, "brightness": 0.4, "jitter_p": 0.8, "blur": 0.5,
  "solarize": 0.2, "translate": 1, "mean": (0.5,) * 3, "std": (0.2,) * 3,
}  # fmt: skip
jitted_views = jax.jit(lib.augment_views, static_argnums=0)


@pytest.mark.parametrize("sobel", [False, True])
def test_every_view_has_the_key_of_its_number(sobel):
  config = make_config(**RECIPE, sobel=sobel)
  views, index = make_views(), jnp.array([3, 9, 3, 0, 7])
  key = jax.random.key(5)
  got = jitted_views(config, key, views, index)
  assert isinstance(got, tuple)
  channels = 2 if sobel else 3
  assert got[0].shape == (5, 2, 16, 16, channels)
  assert got[1].shape == (5, 3, 8, 8, channels)
  numbered = [(a, i) for a, v in enumerate((2, 3)) for i in range(v)]
  for number, (a, i) in enumerate(numbered):
    want = jitted(
      config, jax.random.fold_in(key, number), views[a][:, i], index
    )
    np.testing.assert_allclose(got[a][:, i], want, atol=1e-5)


def test_views_are_independent_and_the_first_needs_no_other():
  config = make_config(**RECIPE)
  same = jnp.broadcast_to(jnp.asarray(smooth(16, 16)), (3, 4, 16, 16, 3))
  key, index = jax.random.key(0), jnp.arange(3)
  got = np.asarray(jitted_views(config, key, same, index))
  assert got.shape == same.shape
  assert got.dtype == np.float32
  assert len({x.tobytes() for x in got.reshape(12, -1)}) == 12
  alone = jitted_views(config, key, same[:, :1], index)
  np.testing.assert_allclose(alone, got[:, :1], atol=1e-5)
  # An array, or a tuple that holds the same views: the same.
  parts = jitted_views(config, key, (same[:, :1], same[:, 1:]), index)
  np.testing.assert_allclose(np.concatenate(parts, 1), got, atol=1e-5)
  # Another place in the batch: the same.
  order = np.array([2, 0, 1])
  moved = jitted_views(config, key, same[order], index[order])
  np.testing.assert_allclose(moved, got[order], atol=1e-5)


def program(**changes):
  lowered = jitted.lower(
    make_config(**changes), jax.random.key(0), noise(3), jnp.arange(3)
  )
  return lowered.compile().as_text()


def test_off_is_the_identity_and_leaves_no_trace():
  images = noise(3)
  np.testing.assert_allclose(run(make_config(), images), images / 255, 1e-6)
  text = program()
  # What look-ups, rotation, draws, solarisation, blur and Sobel are made of.
  for op in ("gather", "cosine", "xor", "minimum", "pad", "slice"):
    assert op not in text
  # A strength of 0 silences an operation whatever else is set.
  # Instructions are counted; a text also has a table of source lines, in which
  # a program from the compilation cache differs.
  assert program(blur_sigma=(0.5, 5.0)).count(" = ") == text.count(" = ")


@pytest.mark.parametrize("name", ["blur", "solarize", "lighting", "sobel"])
def test_on_leaves_a_trace(name):
  ops = {
    "blur": "xor", "solarize": "minimum", "lighting": "xor", "sobel": "pad",
  }  # fmt: skip
  value = True if name == "sobel" else 0.5
  assert ops[name] in program(**{name: value})


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
  np.testing.assert_allclose(
    lib.normalize(config, jnp.float32(images)), want, atol=1e-5
  )
  np.testing.assert_allclose(run(config, images), want, atol=1e-5)


def test_views_with_recipes_of_their_own():
  """View 0 has the first value, view 1 the second, all others the last."""
  config = make_config(solarize=(1.0, 0.0), blur=(0.0, 1.0))
  images = np.random.default_rng(0).integers(0, 256, (4, 4, 9, 9, 3), np.uint8)
  key, index = jax.random.key(0), np.arange(4)
  index = jnp.asarray(index)
  found = lib.augment_views(
    config,
    key,
    (jnp.asarray(images[:, :3]), jnp.asarray(images[:, 3:])),
    index,
  )
  views = np.concatenate(found, axis=1)
  solarized, blurred = (
    lib.augment_views(
      make_config(**{name: 1.0}), key, jnp.asarray(images), index
    )
    for name in ("solarize", "blur")
  )
  np.testing.assert_allclose(views[:, 0], solarized[:, 0], atol=1e-6)
  np.testing.assert_allclose(views[:, 1:], blurred[:, 1:], atol=1e-6)
  assert np.abs(views[:, 1:] - images[:, 1:] / 255).max() > 0.1
