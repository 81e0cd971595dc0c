"""ODC on the 1,797 digits inside scikit-learn: the quickstart.

  python run.py --config=configs/odc_digits.py

A small ResNet-18 learns from 8x8 images without their labels.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "odc"
  config.seed = 0
  config.num_clusters = 30
  config.num_epochs = 30
  config.batch_size = 64

  config.data = ConfigDict(
    {
      "source": "digits",
      "split": "",
      "sampling": "permutation",
      "image_size": 8,
      "crop_scale": (1.0, 1.0),
      "crop_ratio": (1.0, 1.0),
      "eval_resize": 8,
      "num_threads": 2,
      "num_workers": 0,
      "prefetch": 8,
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.0,
      "rotation": 10.0,
      "translate": 1,
      "jitter_p": 1.0,
      "brightness": 0.2,
      "contrast": 0.2,
      "saturation": 0.0,
      "hue": 0.0,
      "gray": 0.0,
      "mean": (0.305, 0.305, 0.305),
      "std": (0.376, 0.376, 0.376),
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet18",
      "stem": "small",
      "width": 32,
      "dtype": "float32",
      "neck_hidden": 128,
      "embedding_dim": 64,
      "dropout": 0.0,
      "neck_bn_momentum": 0.1,
      "group_size": 0,
    }
  )
  config.odc = ConfigDict(
    {
      "momentum": 0.5,
      "assign_metric": "dot",
      "reweight_power": 0.5,
      "centroid_every": 10,
      "small_cluster_every": 1,
      "min_cluster": 10,
      "memory_dtype": "float32",
      "kmeans_iters": 20,
      "kmeans_init": "k-means++",
    }
  )
  config.optimizer = ConfigDict(
    {
      "learning_rate": 0.03,
      "momentum": 0.9,
      "head_momentum": 0.0,
      "weight_decay": 1e-5,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (25,),
      "decay_rate": 0.4,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = ConfigDict(
    {
      "evaluators": ("knn", "clustering"),
      "split": "",
      "every_epochs": 5,
      "batch_size": 256,
      "knn_k": 5,
      "knn_temperature": 0.0,
    }
  )
  config.log_every = 20
  config.checkpoint_every_epochs = 5
  config.keep_checkpoints = 2
  if variant == "quick":
    config.num_epochs = 5
    config.model.width = 16
  elif variant:
    raise ValueError(f"unknown variant {variant!r}; there is :quick")
  return config
