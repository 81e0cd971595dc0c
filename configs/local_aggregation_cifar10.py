"""Local Aggregation with ResNet-18 on CIFAR-10.

  python run.py --config=configs/local_aggregation_cifar10.py

The images come from TFDS, which has to be prepared once, on a machine with a
network, by `python -m odc_jax.data.prepare cifar10`; or from a folder that
holds train/<class>/*.png and test/<class>/*.png:

  python run.py --config=configs/local_aggregation_cifar10.py \\
    --config.data.source=folder:/data/cifar10

The official code has no CIFAR-10. This is its recipe for ImageNet with as many
images to a cluster, the epochs and decays of its port to PyTorch, and the
weight decay and the crops that Invariance Propagation has for CIFAR. This has
not been run to its end yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "local_aggregation"
  config.seed = 0
  # ImageNet has 43 images for each of 30,000.
  config.num_clusters = 1170
  config.num_epochs = 200
  config.batch_size = 128

  config.data = ConfigDict(
    {
      "source": "tfds:cifar10",
      "split": "train",
      "sampling": "permutation",
      "image_size": 32,
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
      "neck": "linear",
      "embedding_dim": 128,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.local_aggregation = ConfigDict(
    {
      # t, and how much of its old row the memory keeps.
      "temperature": 0.07,
      "momentum": 0.5,
      # k; of the first epochs the images drawn as noise.
      "num_background": 4096,
      "num_clusterings": 10,
      "kmeans_iters": 20,
      # Of instance recognition, before the first clustering.
      "warm_epochs": 10.0,
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "learning_rate": 0.03,
      "momentum": 0.9,
      "weight_decay": 0.0005,
      # Neither BatchNorm's nor biases.
      "decay_all": False,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "warmup_from": 0.0,
      "decay_epochs": (160, 190),
      "decay_rate": 0.1,
      "final_learning_rate": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="test", every_epochs=10)
  config.update(common.logging())
  if common.is_quick(variant):
    common.shorten(config, num_epochs=1)
    config.model.width = 16
    config.local_aggregation.warm_epochs = 0.5
    config.optimizer.decay_epochs = ()
  return config
