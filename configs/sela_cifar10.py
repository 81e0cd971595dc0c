"""SeLa with ResNet-18 on CIFAR-10.

  python run.py --config=configs/sela_cifar10.py

The images come from TFDS, which has to be prepared once, on a machine with a
network, by `python -m odc_jax.data.prepare cifar10`; or from a folder that
holds train/<class>/*.png and test/<class>/*.png:

  python run.py --config=configs/sela_cifar10.py \
    --config.data.source=folder:/data/cifar10

Values: self-label cifar.py and its script, with ten heads of 128 clusters, one
of which is solved for about once an epoch. Officially the network is AlexNet on
images enlarged to 224 x 224. This has not been run to its end yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "sela"
  config.seed = 0
  config.num_clusters = 128
  config.extra_clusters = (128,) * 9
  config.num_epochs = 400
  config.batch_size = 128

  config.data = ConfigDict(
    {
      "source": "tfds:cifar10",
      "split": "train",
      "sampling": "permutation",
      "image_size": 32,
      "views": 1,
      "crop_scale": (0.2, 1.0),
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
      "jitter_p": 1.0,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.4,
      "hue": 0.4,
      "gray": 0.2,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.0,
      "lighting": 0.0,
      "mean": (0.4914, 0.4822, 0.4465),
      "std": (0.2023, 0.1994, 0.2010),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet18",
      "stem": "small",
      "width": 64,
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
      "tolerance": 0.01,
      "num_solves": 400,
      "schedule": "linear",
      "heads": "one",
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "learning_rate": 0.03,
      "momentum": 0.9,
      "weight_decay": 5e-4,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (240, 320),
      "decay_rate": 0.1,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="test", every_epochs=10)
  config.update(common.logging())
  if common.is_quick(variant):
    common.shorten(config, num_epochs=1)
    config.model.width = 16
    config.num_clusters = 100
    config.extra_clusters = (100,)
    config.sela.num_solves = 2
  return config
