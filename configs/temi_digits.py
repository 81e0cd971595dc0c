"""TEMI on the 1,797 handwritten digits inside scikit-learn.

  python run.py --config=configs/temi_digits.py

TEMI clusters the features of a network that stays as it is. Here that is a
ResNet-18 with random weights, a quarter as wide as usual, which knows nothing
but that near pixels belong together: the whole method in half a minute without
a download, and no measure of what it does on the features of a trained network.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "temi"
  config.seed = 0
  config.num_clusters = 10
  config.num_epochs = 100
  config.batch_size = 256

  config.data = ConfigDict(
    {
      "source": "digits",
      "split": "",
      "sampling": "permutation",
      "image_size": 32,
      "eval_resize": 32,
      **common.reading(num_threads=2, prefetch=8),
    }
  )
  config.augment = ConfigDict(
    {
      "mean": (0.305, 0.305, 0.305),
      "std": (0.376, 0.376, 0.376),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet18",
      "stem": "imagenet",
      "width": 16,
      "dtype": "float32",
      "neck": "standardized",
      "head_layers": 1,
      "head_hidden": 128,
      "head_bottleneck": 64,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
      "train": "head",
    }
  )
  config.temi = ConfigDict(
    {
      # "temi", or "scan", which does not read beta.
      "objective": "temi",
      "weights": "heads",
      "num_heads": 16,
      "num_neighbors": 20,
      "beta": 0.6,
      "prior_momentum": 0.9,
      "student_temperature": 0.1,
      "teacher_temperature": (0.1, 0.1),
      "teacher_temperature_epochs": 1,
      # Officially 0.996, which looks back over 250 steps, of 700 here.
      "teacher_momentum": 0.98,
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "adamw",
      "learning_rate": 5e-4,
      "final_learning_rate": 5e-4,
      "momentum": 0.9,
      "weight_decay": 1e-4,
      "schedule": "cosine",
      "warmup_epochs": 5.0,
      "warmup_from": 0.0,
      "head_freeze_epochs": 1,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation_of_digits()
  config.update(common.logging(log_every=20, checkpoint_every_epochs=10))
  if common.is_quick(variant):
    common.shorten(config, num_epochs=5)
    config.batch_size = 64
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-3
    config.optimizer.warmup_epochs = 0.0
  return config
