"""CoKe with ResNet-18 on CIFAR-10.

  python run.py --config=configs/coke_cifar10.py

The paper gives no numbers on CIFAR-10, and these hyper-parameters are
unverified: the optimiser and the crops are those of SeCu, by the same author;
the learning rate of the duals is, per cluster, that of ImageNet. CIFAR-10 is
prepared as for configs/odc_cifar10.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "coke"
  config.seed = 0
  config.num_clusters = 100
  config.extra_clusters = (150, 200)
  config.num_epochs = 401
  config.batch_size = 128

  config.data = ConfigDict(
    {
      "source": "tfds:cifar10",
      "split": "train",
      "sampling": "permutation",
      "image_size": 32,
      "views": 2,
      "crop_scale": (0.3, 1.0),
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
      "blur": (1.0, 0.1),
      "blur_sigma": (0.1, 2.0),
      "solarize": (0.0, 0.2),
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
      "init": "fan_out",
      "neck": "mlp3",
      "neck_hidden": 512,
      "embedding_dim": 128,
      "predictor": True,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.coke = ConfigDict(
    {
      "temperature": 0.1,
      "dual_learning_rate": 0.7,
      "size_ratio": 0.4,
      # The weight of the cluster against the other view's probabilities.
      "hard_weight": 0.2,
      # Against that of the projection.
      "prediction_weight": 0.5,
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "learning_rate": 0.2,
      "momentum": 0.9,
      "weight_decay": 1e-4,
      "schedule": "cosine",
      "hold_epochs": 1,
      "warmup_epochs": 10.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="test", every_epochs=10)
  config.update(common.logging())
  if common.is_quick(variant):
    common.shorten(config, num_epochs=1)
    config.model.width = 16
    config.num_clusters = 50
    config.extra_clusters = (75, 100)
    config.optimizer.hold_epochs = 0
    config.optimizer.warmup_epochs = 0.0
  return config
