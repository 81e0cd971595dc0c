"""A small data set in the layout of Pascal VOC2007."""

import pathlib

import numpy as np
from PIL import Image

CLASSES = ("bus", "cat", "dog")


def write(root: pathlib.Path, sizes, classes=CLASSES, seed=0):
  """Writes images and lists; returns split -> int [n, classes], in VOC's code.

  An image has noise and, for each class that is present, a bar in its colour;
  for one marked as difficult a faint one.

  Args:
    root: what is to be VOC2007.
    sizes: split -> number of images.
    classes: their names.
    seed: of all of it.
  """
  rng = np.random.default_rng(seed)
  for folder in ("JPEGImages", "ImageSets/Main"):
    (root / folder).mkdir(parents=True, exist_ok=True)
  targets, first = {}, 1
  for split, size in sizes.items():
    shape = size, len(classes)
    targets[split] = rng.choice([1, 0, -1], shape, p=[0.3, 0.15, 0.55])
    names = [f"{first + i:06d}" for i in range(size)]
    first += size
    for name, row in zip(names, targets[split], strict=True):
      width, height = rng.integers(20, 40, size=2)
      pixels = rng.integers(0, 160, (height, width, 3))
      for c, target in enumerate(row):
        start = int(rng.integers(0, height - 5))
        pixels[start : start + 5, :, c % 3] += {1: 70, 0: 30, -1: 0}[target]
      image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
      image.save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
    for c, kind in enumerate(classes):
      # VOC pads the targets to two characters.
      lines = [
        f"{name} {target:2d}\n"
        for name, target in zip(names, targets[split][:, c], strict=True)
      ]
      (root / f"ImageSets/Main/{kind}_{split}.txt").write_text("".join(lines))
  return targets
