"""What every experiment needs and no paper says; a config imports it as it is.

Data, crops, augmentation, network, method and optimizer are the experiment:
they stand in its own file, every value of them.
"""

from typing import Any

from ml_collections import ConfigDict

from odc_jax.errors import UserError


def evaluation(split: str, every_epochs: int | str) -> ConfigDict:
  """Returns the section `eval` for photographs: OpenSelfSup's protocols.

  Those of ODC's published numbers. An experiment whose paper has others gives
  its own blocks for `linear_sgd`, `linear_stages` or `semi`; docs/evaluation.md
  has all of them, with official file and line.
  """
  few_labels = {
    "learning_rates": (0.001, 0.01, 0.1),
    "head_multipliers": (1, 10, 100),
    "list": "",
  }
  return ConfigDict(
    {
      "evaluators": ("knn", "clustering"),
      "split": split,
      "every_epochs": every_epochs,
      "batch_size": 512,
      "knn": {"k": 20, "temperature": 0.07},
      # OpenSelfSup benchmarks/linear_classification/imagenet/r50_last.py.
      "linear_sgd": linear(
        num_epochs=100,
        batch_size=256,
        learning_rate=30.0,
        schedule="step",
        decay_epochs=(60, 80),
        weight_decay=0.0,
      ),
      # OpenSelfSup benchmarks/linear_classification/imagenet/r50_multihead.py.
      "linear_stages": stages(
        num_epochs=90,
        batch_size=256,
        learning_rate=0.01,
        schedule="step",
        decay_epochs=(30, 60),
        nesterov=True,
        weight_decay=1e-4,
        jitter=0.4,
        lighting=0.1,
      ),
      # OpenSelfSup benchmarks/semi_classification/imagenet_*percent.
      "semi": {
        "num_epochs": 20,
        "batch_size": 256,
        "image_size": 0,
        "eval_resize": 0,
        "momentum": 0.9,
        "decay_epochs": (12, 16),
        "decay_rate": 0.2,
        "crop_scale": (0.08, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "epoch": "last",
        "percent1": {"weight_decay": 5e-4, **few_labels},
        "percent10": {"weight_decay": 1e-4, **few_labels},
      },
      # A table of what is known of the images, for the evaluator `reverse`.
      "attributes": "",
    }
  )


def linear(**values: Any) -> ConfigDict:
  """Returns a section `eval.linear_sgd`: SGD on random crops and flips.

  Args:
    **values: What the paper says, and whatever differs from what most papers
      have in common, which stands here.
  """
  return ConfigDict(
    {
      # In pixels, of a crop and of the short side before it; 0: as in training.
      "image_size": 0,
      "eval_resize": 0,
      "momentum": 0.9,
      "nesterov": False,
      # Of the schedule "step"; "cosine" and "inverse_sqrt" do not read them.
      "decay_epochs": (),
      "decay_rate": 0.1,
      # Random parts of the image, resized; or "fixed": of the resized image.
      "train_crops": "resized",
      "crop_scale": (0.08, 1.0),
      "crop_ratio": (3 / 4, 4 / 3),
      "flip": 0.5,
      "jitter": 0.0,
      "lighting": 0.0,
      # "center"; or ten crops: "ten_logits" or "ten_softmax" are averaged.
      "test_views": "center",
      **values,
    }
  )


def stages(**values: Any) -> ConfigDict:
  """Returns a section `eval.linear_stages`, likewise.

  Args:
    **values: As for `linear`.
  """
  return linear(
    **{
      "pooling": "mean",
      "batch_norm": True,
      # The last one; or "best": the one that is best on the test set.
      "epoch": "last",
      **values,
    }
  )


def evaluation_of_digits() -> ConfigDict:
  """Returns the section `eval` for 1,797 digits without a test set."""
  section: Any = evaluation(split="", every_epochs=10)
  section.batch_size = 256
  section.knn.k, section.knn.temperature = 5, 0.0
  # 30 is for ResNet-50 on ImageNet; here it ends at a training loss of 0.7. Of
  # 0.1, 0.3, 1 and 3 this one has the lowest over the epochs.
  section.linear_sgd.learning_rate = 0.3
  section.linear_sgd.num_epochs = section.linear_stages.num_epochs = 30
  section.linear_sgd.decay_epochs = (18, 24)
  section.linear_stages.decay_epochs = (10, 20)
  for probe in (section.linear_sgd, section.linear_stages, section.semi):
    probe.batch_size = 64
    # A mirrored digit is none, and half of one may be another.
    probe.flip = 0.0
    probe.crop_scale, probe.crop_ratio = (0.6, 1.0), (0.8, 1.25)
  return section


def reading(num_threads: int, prefetch: int = 16) -> dict[str, Any]:
  """Returns the keys of the section `data` that say how images are read."""
  return {
    # folder:PATH, the pictures where the source is features:FILE.
    "images": "",
    # Where it is sequences:PATH: which file of ground truth names, and whether
    # features are standardised: none, video or video_unit.
    "mapping": "",
    "standardize": "none",
    # Of images that are looked at whole, and of training crops.
    "interpolation": "bilinear",
    "crop_interpolation": "bilinear",
    # Whether the images lie on the devices: auto, images or off.
    "resident": "auto",
    "num_threads": num_threads,
    "num_workers": 0,
    "prefetch": prefetch,
    "on_error": "replace",
    "max_bad_fraction": 0.01,
  }


def logging(
  log_every: int = 50, checkpoint_every_epochs: int | str = 1
) -> dict[str, Any]:
  """Returns the keys that say when to log and to save, and what NaN does."""
  return {
    "log_every": log_every,
    "checkpoint_every_epochs": checkpoint_every_epochs,
    "keep_checkpoints": 2,
    "on_nan": "stop",
  }


def is_quick(variant: str, *others: str) -> bool:
  """Returns whether the variant is `quick`, which every experiment has.

  Raises:
    UserError: If it is neither that, nor "", nor one of the others.
  """
  known = [f":{name}" for name in ("quick", *others)]
  if variant and f":{variant}" not in known:
    there_are = f"are {', '.join(known[:-1])} and" if others else "is"
    raise UserError(
      f"unknown variant {variant!r}; there {there_are} {known[-1]}"
    )
  return variant == "quick"


def shorten(config: Any, num_epochs: int) -> None:
  """Lets an experiment end, and be evaluated, after so many epochs."""
  config.num_epochs = config.eval.every_epochs = num_epochs
  config.checkpoint_every_epochs = 1


def shrink_imagenet(config: Any) -> None:
  """Takes 1 % of the images, small, and two epochs: minutes on a GPU."""
  config.data.split = "train[:1%]"
  config.data.image_size, config.data.eval_resize = 64, 73
  config.model.name = "resnet18"
  config.num_clusters = 100
  config.batch_size = 128
  config.log_every = 10
  shorten(config, num_epochs=2)
