"""What every experiment needs and no paper says; a config imports it as it is.

Data, crops, augmentation, network, method and optimizer are the experiment:
they stand in its own file, every value of them.
"""

from typing import Any

from ml_collections import ConfigDict


def evaluation(split: str, every_epochs: int | str) -> ConfigDict:
  """Returns the section `eval` for photographs: the published protocols."""
  return ConfigDict(
    {
      "evaluators": ("knn", "clustering"),
      "split": split,
      "every_epochs": every_epochs,
      "batch_size": 512,
      "knn_k": 20,
      "knn_temperature": 0.07,
      "linear_learning_rate": 30.0,
      "linear_epochs": 100,
      "stages_learning_rate": 0.01,
      "stages_epochs": 90,
      "probe_batch_size": 256,
      "semi_epochs": 20,
      "semi_learning_rates": (0.001, 0.01, 0.1),
      "semi_head_multipliers": (1, 10, 100),
      "semi_lists": ("", ""),
      # A table of what is known of the images, for the evaluator `reverse`.
      "attributes": "",
    }
  )


def evaluation_of_digits() -> ConfigDict:
  """Returns the section `eval` for 1,797 digits without a test set."""
  section = evaluation(split="", every_epochs=10)
  section.batch_size = 256
  section.knn_k, section.knn_temperature = 5, 0.0
  # 30 is for ResNet-50 on ImageNet; here it ends at a training loss of 0.7. Of
  # 0.1, 0.3, 1 and 3 this one has the lowest over the epochs.
  section.linear_learning_rate = 0.3
  section.linear_epochs = section.stages_epochs = 30
  section.probe_batch_size = 64
  return section


def reading(num_threads: int, prefetch: int = 16) -> dict[str, Any]:
  """Returns the keys of the section `data` that say how images are read."""
  return {
    "interpolation": "bilinear",
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
    ValueError: If it is neither that, nor "", nor one of the others.
  """
  known = [f":{name}" for name in ("quick", *others)]
  if variant and f":{variant}" not in known:
    there_are = f"are {', '.join(known[:-1])} and" if others else "is"
    raise ValueError(
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
