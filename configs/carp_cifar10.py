"""CARP with ResNet-18 on CIFAR-10.

  python run.py --config=configs/carp_cifar10.py

The images come from TFDS, which has to be prepared once, on a machine with a
network, by `python -m odc_jax.data.prepare cifar10`; or from a folder that
holds train/<class>/*.png and test/<class>/*.png:

  python run.py --config=configs/carp_cifar10.py \\
    --config.data.source=folder:/data/cifar10

There is no official recipe for CIFAR-10: the augmentation is that of ImageNet
without blur, learning rate, number of epochs and optimizer are SwAV's here, and
there are four blocks of 256 prototypes. This has not been run to its end yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "carp"
  config.seed = 0
  config.num_clusters = 1024
  config.num_epochs = 200
  config.batch_size = 256

  config.data = ConfigDict(
    {
      "source": "tfds:cifar10",
      "split": "train",
      "sampling": "permutation",
      "image_size": 32,
      "views": 2,
      "crop_scale": (0.2, 1.0),
      "small_views": 0,
      "small_size": 16,
      "small_crop_scale": (0.05, 0.2),
      "crop_ratio": (3 / 4, 4 / 3),
      "eval_resize": 32,
      **common.reading(num_threads=4),
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.5,
      "rotation": 0.0,
      "rotation_interpolation": "nearest",
      "translate": 0,
      "jitter_p": 0.8,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.2,
      "hue": 0.1,
      "gray": 0.2,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": (0.0, 0.2),
      "lighting": 0.0,
      "mean": (0.4914, 0.4822, 0.4465),
      "std": (0.2023, 0.1994, 0.201),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet18",
      "stem": "small",
      "width": 64,
      "dtype": "float32",
      "init": "fan_out",
      "neck": "mlp3_gelu",
      "neck_hidden": 2048,
      "embedding_dim": 256,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.carp = ConfigDict(
    {
      # Prototypes in a block; 0: all of them in one.
      "block_size": 256,
      # Without a slower copy a view is assigned like the other one itself.
      "teacher": True,
      "teacher_decay": (0.99, 1.0),
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "lars",
      "learning_rate": 0.6,
      "momentum": 0.9,
      "weight_decay": 1e-06,
      "schedule": "cosine",
      "final_learning_rate": 0.0,
      "warmup_epochs": 10.0,
      "warmup_from": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="test", every_epochs=10)
  config.eval.network = "teacher"
  config.update(common.logging())
  if common.is_quick(variant):
    common.shorten(config, num_epochs=1)
    config.model.width = 16
    config.num_clusters, config.carp.block_size = 100, 25
    config.optimizer.warmup_epochs = 0.0
  return config
