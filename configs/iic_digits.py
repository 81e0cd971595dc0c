"""IIC on the 1,797 handwritten digits inside scikit-learn.

  python run.py --config=configs/iic_digits.py

A ResNet-18, a quarter as wide as usual, with five heads of ten clusters and
five of 50. What differs from the published hyper-parameters, and why, is in
docs/methods.md. With seed 0: accuracy 0.595 and kNN 0.787 after 560 steps; the
random network has a kNN of 0.911 and k-means of the pixels an accuracy of 0.79,
so that this run is too short to teach anything.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "iic"
  config.seed = 0
  config.num_clusters = 10
  config.num_epochs = 40
  config.batch_size = 128

  config.data = ConfigDict(
    {
      "source": "digits",
      "split": "",
      "sampling": "permutation",
      "image_size": 32,
      # The image, and 2 changed copies of it.
      "views": 1,
      "crop_scale": (0.8, 1.0),
      "small_views": 2,
      "small_size": 32,
      "small_crop_scale": (0.6, 1.0),
      "crop_ratio": (0.8, 1.25),
      "eval_resize": 32,
      **common.reading(num_threads=2, prefetch=8),
    }
  )
  config.augment = ConfigDict(
    {
      # Of the image, then of all copies.
      "flip": 0.0,
      "rotation": (0.0, 20.0),
      "rotation_interpolation": "bilinear",
      "translate": 2,
      "jitter_p": (0.0, 1.0),
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
      # The heads are on the pooled features.
      "neck": "none",
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.iic = ConfigDict(
    {
      "num_heads": 5,
      "over_clusters": 50,
      # What the heads of each epoch are; again from the first.
      "turns": ("over", "main"),
      "marginal_weight": 1.0,
    }
  )
  config.optimizer = ConfigDict(
    {
      # Without weight decay this is Adam.
      "name": "adamw",
      "learning_rate": 1e-3,
      "momentum": 0.9,
      "weight_decay": 0.0,
      "schedule": "cosine",
      "warmup_epochs": 0.0,
      "decay_epochs": (),
      "decay_rate": 0.1,
      "final_learning_rate": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation_of_digits()
  config.eval.evaluators = ("knn", "clustering", "assignment")
  config.update(common.logging(log_every=20, checkpoint_every_epochs=10))
  if common.is_quick(variant):
    common.shorten(config, num_epochs=4)
  return config
