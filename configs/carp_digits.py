"""CARP on the 1,797 handwritten digits inside scikit-learn.

  python run.py --config=configs/carp_digits.py

A ResNet-18, a quarter as wide as usual, three blocks of 10 prototypes and two
views. The target network follows as fast as in byol_digits.py, for the same
reason. Seed 0 ends at kNN 0.911, which is the random network's: these settings
do not suffice yet (docs/methods.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "carp"
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
      "neck": "mlp3_gelu",
      "neck_hidden": 512,
      "embedding_dim": 64,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.carp = ConfigDict(
    {
      # Prototypes in a block; 0: all of them in one.
      "block_size": 10,
      # Without a slower copy a view is assigned like the other one itself.
      "teacher": True,
      "teacher_decay": (0.8, 1.0),
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "learning_rate": 0.1,
      "momentum": 0.9,
      "weight_decay": 0.0001,
      "schedule": "cosine",
      "final_learning_rate": 0.0,
      "warmup_epochs": 2.0,
      "warmup_from": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation_of_digits()
  config.eval.network = "teacher"
  config.update(common.logging(log_every=20, checkpoint_every_epochs=10))
  if common.is_quick(variant):
    common.shorten(config, num_epochs=5)
  return config
