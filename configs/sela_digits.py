"""SeLa on the 1,797 handwritten digits inside scikit-learn.

  python run.py --config=configs/sela_digits.py

A ResNet-18, a quarter as wide as usual, with four heads of 30 clusters. What
differs from the published hyper-parameters, and why, is in docs/methods.md.

40 epochs take 213 CPU seconds, about two minutes of two cores. Seed 0: kNN
top-1 0.983 (the random network 0.911, and 0.778 once the first solve has moved
its BatchNorm statistics), NMI with the labels 0.681, purity 0.893.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "sela"
  config.seed = 0
  config.num_clusters = 30
  config.extra_clusters = (30, 30, 30)
  config.num_epochs = 40
  config.batch_size = 64

  config.data = ConfigDict(
    {
      "source": "digits",
      "split": "",
      "sampling": "permutation",
      "image_size": 32,
      "views": 1,
      "crop_scale": (0.6, 1.0),
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
      # The heads are on the pooled features.
      "neck": "none",
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.sela = ConfigDict(
    {
      "power": 10.0,
      "tolerance": 0.1,
      "num_solves": 30,
      "schedule": "quadratic",
      "heads": "all",
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "learning_rate": 0.1,
      "momentum": 0.9,
      "weight_decay": 5e-4,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (30,),
      "decay_rate": 0.1,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation_of_digits()
  config.update(common.logging(log_every=20, checkpoint_every_epochs=10))
  if common.is_quick(variant):
    common.shorten(config, num_epochs=5)
  return config
