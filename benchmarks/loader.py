"""The loader against the decoding that it cannot do without.

  python -m benchmarks.loader --images=DIR [--image-size 224 --batch-size 64
    --num-images 1000 --threads CORES --epochs 5 --repeats 3]

DIR holds photographs. They are read over and over until --num-images are
through, in each of these ways, one after the other, --repeats times; medians:

  decode, decode + crop     one thread, images per second of CPU time: Pillow,
                            which the loader uses, and OpenCV, where installed
  decode + crop, all cores  a thread pool, without any batches
  loader                    odc_jax.data.loader with --threads threads, and with
                            as many worker processes
  tf.data                   decode_and_crop and resize, with antialiasing as
                            Pillow does it and without, where TensorFlow is

A crop is a RandomResizedCrop of 8 to 100 % of the area. Then one loader runs
for --epochs epochs of the folder, with the peak of the process's memory after
each. Prints two tables and a line of JSON; asserts nothing.
"""

import argparse
import concurrent.futures
import importlib.metadata
import importlib.util
import io
import json
import os
import resource
import statistics
import sys
import time

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from odc_jax.data import decode, loader, sources
from odc_jax.data import order as order_lib

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


class Repeated:
  """A source again and again, up to a length."""

  def __init__(self, source, length):
    self.source, self.length = source, length
    self.num_classes = self.keys = None

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    record = self.source[index % len(self.source)]
    return {**record, "index": index}


def cpu_rate(function, images):
  """Returns images per second of this thread's CPU time."""
  start = time.thread_time()
  for number, image in enumerate(images):
    function(image, number)
  return len(images) / (time.thread_time() - start)


def pool_rate(function, images, threads):
  """Returns images per second on the wall, from a pool of threads."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    start = time.perf_counter()
    for _ in pool.map(function, images, range(len(images))):
      pass
    return len(images) / (time.perf_counter() - start)


def pillow_decode(image, number):
  """Decodes all of an image."""
  del number
  Image.open(io.BytesIO(image)).convert("RGB")


def pillow_crop(size):
  """Returns what the loader does with an image."""
  crops = [decode.Crop(size, SCALE, RATIO)]

  def crop(image, number):
    rng = np.random.Generator(np.random.Philox(number))
    decode.random_resized_crops(image, crops, [rng])

  return crop


def opencv(size):
  """Returns decode and decode + crop with OpenCV, at its best quality."""
  import cv2

  cv2.setNumThreads(0)

  def read(image, number):
    del number
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None, "OpenCV cannot read one of the images"
    return pixels

  def crop(image, number):
    pixels = read(image, number)
    height, width = pixels.shape[:2]
    rng = np.random.Generator(np.random.Philox(number))
    left, top, right, low = decode.sample_box(width, height, SCALE, RATIO, rng)
    box = pixels[top:low, left:right]
    shrinks = min(box.shape[:2]) > size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cv2.resize(box, (size, size), interpolation=how)

  return read, crop


def start_loader(source, batch_size, size, threads, workers):
  """Starts the loader that is measured."""
  data = ConfigDict(
    {
      "sampling": "permutation",
      "num_threads": threads,
      "num_workers": workers,
      "prefetch": 2 * max(threads, workers, 1),
    }
  )
  return loader.train_batches(
    source,
    data,
    batch_size=batch_size,
    crops=[decode.Crop(size, SCALE, RATIO)],
    seed=0,
  )


def loader_rate(source, batch_size, size, threads, workers):
  """Returns images per second, from the first batch to the last."""
  batches = start_loader(source, batch_size, size, threads, workers)
  # As many as are under way at once come in a bunch: their time is the next
  # bunch's.
  bunch = max(threads, workers, 1)
  for _ in range(bunch):
    next(batches)
  count = max(bunch, len(source) // batch_size)
  start = time.perf_counter()
  for _ in range(count):
    next(batches)
  seconds = time.perf_counter() - start
  batches.close()
  return count * batch_size / seconds


def tf_data_rate(images, batch_size, size, antialias):
  """Returns images per second of the usual tf.data pipeline."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import tensorflow as tf

  def crop(image):
    shape = tf.io.extract_jpeg_shape(image)
    box = tf.image.sample_distorted_bounding_box(
      shape,
      tf.zeros([0, 0, 4], tf.float32),
      aspect_ratio_range=RATIO,
      area_range=SCALE,
      use_image_if_no_bounding_boxes=True,
      min_object_covered=0,
    )
    window = tf.concat([box[0][:2], box[1][:2]], 0)
    pixels = tf.image.decode_and_crop_jpeg(image, window, channels=3)
    resized = tf.image.resize(pixels, [size, size], antialias=antialias)
    return tf.cast(resized, tf.uint8)

  data = tf.data.Dataset.from_tensor_slices(images).repeat()
  data = data.map(crop, num_parallel_calls=tf.data.AUTOTUNE)
  batches = iter(data.batch(batch_size).prefetch(tf.data.AUTOTUNE))
  next(batches)
  count = max(2, len(images) // batch_size)
  start = time.perf_counter()
  for _ in range(count):
    next(batches)
  return count * batch_size / (time.perf_counter() - start)


def peak_megabytes():
  """Returns the most memory that the process has had so far."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (2**20 if sys.platform == "darwin" else 2**10)


def memory_by_epoch(source, batch_size, size, threads, epochs):
  """Returns the peak after each epoch of one loader."""
  batches = start_loader(source, batch_size, size, threads, 0)
  peaks = []
  for _ in range(epochs):
    for _ in range(order_lib.steps_per_epoch(len(source), batch_size)):
      next(batches)
    peaks.append(peak_megabytes())
  batches.close()
  return peaks


def main():
  """Measures and prints."""
  cores = len(os.sched_getaffinity(0))
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--images", required=True, metavar="DIR")
  parser.add_argument("--image-size", type=int, default=224)
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--num-images", type=int, default=1000)
  parser.add_argument("--threads", type=int, default=cores)
  parser.add_argument("--epochs", type=int, default=5)
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  size, batch_size = args.image_size, args.batch_size

  folder = sources.make(f"folder:{args.images}")
  source = Repeated(folder, args.num_images)
  images = [source[i]["image"] for i in range(len(source))]
  # First: later, the libraries compared with are in memory too.
  peaks = memory_by_epoch(source, batch_size, size, args.threads, args.epochs)

  crop = pillow_crop(size)
  ways = {
    "decode, Pillow": lambda: cpu_rate(pillow_decode, images),
    "decode + crop, Pillow": lambda: cpu_rate(crop, images),
  }
  versions = {"pillow": importlib.metadata.version("pillow")}
  if importlib.util.find_spec("cv2"):
    read_cv2, crop_cv2 = opencv(size)
    ways["decode, OpenCV"] = lambda: cpu_rate(read_cv2, images)
    ways["decode + crop, OpenCV"] = lambda: cpu_rate(crop_cv2, images)
    versions["opencv"] = sys.modules["cv2"].__version__
  all_cores = f"decode + crop, {args.threads} threads"
  ways[all_cores] = lambda: pool_rate(crop, images, args.threads)
  ways[f"loader, {args.threads} threads"] = lambda: loader_rate(
    source, batch_size, size, args.threads, 0
  )
  ways[f"loader, {args.threads} workers"] = lambda: loader_rate(
    source, batch_size, size, 1, args.threads
  )
  if importlib.util.find_spec("tensorflow"):
    ways["tf.data, antialiased"] = lambda: tf_data_rate(
      images, batch_size, size, True
    )
    ways["tf.data, not antialiased"] = lambda: tf_data_rate(
      images, batch_size, size, False
    )

  rates = {name: [] for name in ways}
  for _ in range(args.repeats):
    for name, way in ways.items():
      rates[name].append(way())
  if "tensorflow" in sys.modules:
    versions["tensorflow"] = sys.modules["tensorflow"].__version__
  medians = {name: statistics.median(rate) for name, rate in rates.items()}

  total = sum(map(len, images)) / len(images) / 1024
  print(
    f"{len(folder)} images of {total:.0f} kB on average, {size} pixels, batch "
    f"{batch_size}, {cores} cores"
  )
  print(f"\n{'':30} {'images/s':>9}  {'against ' + all_cores}")
  for name, rate in medians.items():
    what = "of CPU time" if name.startswith("decode") else ""
    if name == all_cores:
      what = ""
    ratio = "" if what else f"{rate / medians[all_cores]:.2f}"
    print(f"{name:30} {rate:9.0f}  {ratio or what}")
  print("\nepoch   peak memory of the process, MB")
  for epoch, peak in enumerate(peaks, 1):
    print(f"{epoch:5} {peak:10.0f}")
  print(
    json.dumps(
      {
        "benchmark": "loader",
        "images_per_second": {k: round(v, 1) for k, v in medians.items()},
        "peak_megabytes": [round(peak, 1) for peak in peaks],
        "image_size": size,
        "batch_size": batch_size,
        "threads": args.threads,
        "cores": cores,
        "versions": versions,
      }
    )
  )


if __name__ == "__main__":
  main()
