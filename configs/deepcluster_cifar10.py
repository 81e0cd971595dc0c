"""DeepCluster with ResNet-18 on CIFAR-10.

  python run.py --config=configs/deepcluster_cifar10.py

The images come from TFDS, or from a folder, as configs/odc_cifar10.py tells.

The paper gives no numbers on CIFAR-10, and these values have not been tuned:
pooled features as in OpenSelfSup, augmentations and clusters as in ODC's
config, the rest as on ImageNet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "deepcluster"
  config.seed = 0
  config.num_clusters = 400
  config.num_epochs = 200
  config.batch_size = 256

  config.data = ConfigDict(
    {
      "source": "tfds:cifar10",
      "split": "train",
      # The order is that of `deepcluster.sampler`, unless that is "none".
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
      "rotation": 2.0,
      "rotation_interpolation": "nearest",
      "translate": 0,
      "jitter_p": 0.8,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.4,
      "hue": 0.1,
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
      # The pooled features are the embeddings.
      "neck": "none",
      "group_size": 0,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.deepcluster = ConfigDict(
    {
      "pca_dim": 256,
      "kmeans_iters": 20,
      "kmeans_init": "random",
      "recluster_every": 1,
      "sampler": "facebook",
      "reweight_power": 0.0,
    }
  )
  config.optimizer = ConfigDict(
    {
      "learning_rate": 0.05,
      "momentum": 0.9,
      "head_momentum": 0.0,
      "weight_decay": 1e-5,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (),
      "decay_rate": 1.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="test", every_epochs=10)
  config.update(common.logging())
  if common.is_quick(variant):
    common.shorten(config, num_epochs=1)
    config.model.width = 16
    config.num_clusters = 100
    config.deepcluster.pca_dim = 64
  return config
