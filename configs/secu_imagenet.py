"""SeCu with ResNet-50 on ImageNet, with the published hyper-parameters.

  python run.py --config=configs/secu_imagenet.py

Paper: Qian, Stable Cluster Discrimination for Deep Clustering, ICCV 2023.
Values: the official main_imagenet.py and run scripts, constraint "size".

The first of the 1,001 epochs has the learning rate 0: only the centres move.
The official repository gives no accuracies. This implementation has not been
run at this size yet. ImageNet is prepared as for configs/odc_imagenet.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "secu"
  config.seed = 0
  config.num_clusters = 1000
  config.extra_clusters = tuple(range(2000, 10_001, 1000))
  config.num_epochs = 1001
  config.batch_size = 1024

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      "sampling": "permutation",
      "image_size": 224,
      "views": 2,
      "crop_scale": (0.08, 1.0),
      "crop_ratio": (3 / 4, 4 / 3),
      "eval_resize": 256,
      **common.reading(num_threads=16),
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
      "mean": (0.485, 0.456, 0.406),
      "std": (0.229, 0.224, 0.225),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet50",
      "stem": "imagenet",
      "width": 64,
      "dtype": "bfloat16",
      "init": "fan_out",
      "neck": "mlp3",
      "neck_hidden": 2048,
      "embedding_dim": 128,
      "predictor": True,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.secu = ConfigDict(
    {
      # "size", which reads the two keys below, or "entropy", which reads the
      # third.
      "constraint": "size",
      "dual_learning_rate": 20.0,
      "size_ratio": 0.4,
      "entropy_weight": 90000.0,
      "temperature": 0.05,
      "center_temperature": 0.05,
      "hard_weight": 0.2,
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "lars",
      "learning_rate": 1.6,
      "momentum": 0.9,
      "weight_decay": 1e-6,
      "schedule": "cosine",
      "hold_epochs": 1,
      "warmup_epochs": 10.0,
      "head_learning_rate": 4.2,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.update(common.logging())
  if common.is_quick(variant):
    common.shrink_imagenet(config)
    config.extra_clusters = (200,)
    config.optimizer.hold_epochs = 0
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.learning_rate = 0.2
  return config
