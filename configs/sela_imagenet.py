"""SeLa with AlexNet on ImageNet, with the published hyper-parameters.

  python run.py --config=configs/sela_imagenet.py
  python run.py --config=configs/sela_imagenet.py:resnet50

Paper: Asano, Rupprecht, Vedaldi, Self-labelling via simultaneous clustering and
representation learning, ICLR 2020. Values: self-label main.py and scripts/.

Ten heads of 3,000 clusters, 400 epochs at batch 256. Linear top-1 on ImageNet
in the official README: AlexNet with one head of 1,000 clusters 42.1 %, of
10,000 43.8 %; ResNet-50 with ten heads of 3,000 61.5 %. That ResNet-50 is a
pre-activation one, without a last BatchNorm and ReLU; `:resnet50` is the plain
one. This implementation has not been run at that size yet.

A solve holds the embeddings of all images, 21 GB of AlexNet and 10.5 GB of
ResNet-50, and the probabilities of one head, 15.4 GB, split over the devices.

ImageNet has to be prepared once, from its two archives, which are to be had
from image-net.org:

  python -m odc_jax.data.prepare imagenet2012 --manual_dir=/path/to/tars
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "sela"
  config.seed = 0
  config.num_clusters = 3000
  config.extra_clusters = (3000,) * 9
  config.num_epochs = 400
  config.batch_size = 256

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      "sampling": "permutation",
      "image_size": 224,
      "views": 1,
      "crop_scale": (0.08, 1.0),
      "crop_ratio": (3 / 4, 4 / 3),
      "eval_resize": 256,
      "num_threads": 16,
      "num_workers": 0,
      "prefetch": 16,
      "on_error": "replace",
      "max_bad_fraction": 0.01,
      "resident": "auto",
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.5,
      "rotation": 0.0,
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
      "mean": (0.485, 0.456, 0.406),
      "std": (0.229, 0.224, 0.225),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "alexnet",
      "stem": "imagenet",
      "width": 64,
      "dtype": "bfloat16",
      "neck": "fc",
      "neck_hidden": 4096,
      "embedding_dim": 4096,
      "dropout": 0.5,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.sela = ConfigDict(
    {
      "power": 25.0,
      "tolerance": 0.1,
      "num_solves": 100,
      "schedule": "quadratic",
      "heads": "all",
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "learning_rate": 0.08,
      "momentum": 0.9,
      "weight_decay": 1e-5,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (150, 300, 350),
      "decay_rate": 0.1,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = ConfigDict(
    {
      "evaluators": ("knn", "clustering"),
      "split": "validation",
      "every_epochs": 20,
      "batch_size": 512,
      "knn_k": 20,
      "knn_temperature": 0.07,
      "linear_learning_rate": 30.0,
      "linear_epochs": 100,
      "stages_learning_rate": 0.01,
      "stages_epochs": 90,
      "probe_batch_size": 256,
      "semi_epochs": 20,
      "semi_learning_rates": (0.001, 0.01, 0.1),
      "semi_head_multipliers": (1, 10, 100),
      "semi_lists": ("", ""),
    }
  )
  config.log_every = 50
  config.checkpoint_every_epochs = 1
  config.keep_checkpoints = 2
  config.on_nan = "stop"
  if variant == "resnet50":
    config.model.name = "resnet50"
    config.model.neck = "none"
    config.model.embedding_dim = 2048
  elif variant == "quick":
    # 1 % of the images, small: minutes on a GPU.
    config.data.split = "train[:1%]"
    config.data.image_size = 64
    config.data.eval_resize = 73
    config.model.name = "resnet18"
    config.model.neck = "none"
    config.model.embedding_dim = 512
    config.num_clusters = 100
    config.extra_clusters = (100,)
    config.sela.num_solves = 6
    config.num_epochs = 2
    config.batch_size = 128
    config.eval.every_epochs = 2
    config.log_every = 10
  elif variant:
    raise ValueError(
      f"unknown variant {variant!r}; there are :quick and :resnet50"
    )
  return config
