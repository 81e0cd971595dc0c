"""MIRA on the 1,797 handwritten digits inside scikit-learn.

  python run.py --config=configs/mira_digits.py

A ResNet-18, a quarter as wide as usual, 30 prototypes and two views.

With seed 0: kNN 0.878, NMI with the labels 0.357, in 202 CPU seconds; the
random network has a kNN of 0.911, so that this run teaches nothing that a kNN
would see. docs/methods.md says more.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "mira"
  config.seed = 0
  config.num_clusters = 30
  config.num_epochs = 40
  config.batch_size = 64

  config.data = ConfigDict(
    {
      "source": "digits",
      "split": "",
      "sampling": "permutation",
      "image_size": 32,
      "views": 2,
      "crop_scale": (0.6, 1.0),
      "small_views": 0,
      "small_size": 16,
      "small_crop_scale": (0.3, 0.6),
      "crop_ratio": (0.8, 1.25),
      "eval_resize": 32,
      **common.reading(num_threads=2, prefetch=8),
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.0,
      "rotation": 20.0,
      "rotation_interpolation": "bilinear",
      "translate": 2,
      "jitter_p": 1.0,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.0,
      "hue": 0.0,
      "gray": 0.0,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.0,
      "lighting": 0.0,
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
      "init": "fan_in",
      "neck": "mlp3_bias_last",
      "neck_hidden": 128,
      "embedding_dim": 64,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.mira = ConfigDict(
    {
      "temperature": 0.1,
      "teacher_temperature": 0.225,
      "beta": (3 / 4, 2 / 3),
      "num_iters": 30,
      # Officially from 0.99; here are a thousand steps.
      "teacher_decay": (0.97, 1.0),
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "learning_rate": 0.1,
      "momentum": 0.9,
      "weight_decay": 0.0001,
      "schedule": "cosine",
      "warmup_epochs": 2.0,
      "warmup_from": 0.0,
      "decay_all": False,
      "head_freeze_epochs": 1,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation_of_digits()
  config.eval.network = "teacher"
  config.update(common.logging(log_every=20, checkpoint_every_epochs=10))
  if common.is_quick(variant):
    common.shorten(config, num_epochs=5)
  return config
