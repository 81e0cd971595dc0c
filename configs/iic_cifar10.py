"""IIC with ResNet-34 on CIFAR-10, with the published hyper-parameters.

  python run.py --config=configs/iic_cifar10.py

Paper: Ji, Henriques, Vedaldi, Invariant information clustering for unsupervised
image classification and segmentation, ICCV 2019. Values: model 640 of the
official examples/commands.txt: 660 pairs of 220 images, crops of 20 pixels
(0.39 of the area), grey with a Sobel filter, of three epochs one with 70
clusters and two with 10. 2,000 official epochs are 6,000 here.
CIFAR-10 is prepared as for configs/odc_cifar10.py.

The official accuracy is 61.7 %, of a network trained and tested on the training
and the test set together; here it is trained on the former and tested on both.
This has not been run to its end yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "iic"
  config.seed = 0
  config.num_clusters = 10
  config.num_epochs = 6000
  config.batch_size = 220

  config.data = ConfigDict(
    {
      "source": "tfds:cifar10",
      "split": "train",
      "sampling": "permutation",
      "image_size": 32,
      # The image, and 3 changed copies of it.
      "views": 1,
      "crop_scale": (0.39, 0.39),
      "small_views": 3,
      "small_size": 32,
      "small_crop_scale": (0.39, 0.39),
      "crop_ratio": (1.0, 1.0),
      "eval_resize": 32,
      **common.reading(num_threads=4),
    }
  )
  config.augment = ConfigDict(
    {
      # Of the image, then of all copies.
      "flip": (0.0, 0.5),
      "rotation": 0.0,
      "rotation_interpolation": "nearest",
      "translate": 0,
      "jitter_p": (0.0, 1.0),
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.4,
      "hue": 0.125,
      "gray": 0.0,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.0,
      "lighting": 0.0,
      "mean": (0.0, 0.0, 0.0),
      "std": (1.0, 1.0, 1.0),
      "sobel": True,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet34",
      "stem": "small",
      "width": 64,
      "dtype": "float32",
      # The heads are on the pooled features.
      "neck": "none",
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.iic = ConfigDict(
    {
      "num_heads": 5,
      "over_clusters": 70,
      # What the heads of each epoch are; again from the first.
      "turns": ("over", "main", "main"),
      "marginal_weight": 1.0,
    }
  )
  config.optimizer = ConfigDict(
    {
      # Without weight decay this is Adam.
      "name": "adamw",
      "learning_rate": 1e-4,
      "momentum": 0.9,
      "weight_decay": 0.0,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (),
      "decay_rate": 0.1,
      "final_learning_rate": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="test", every_epochs=60)
  config.eval.evaluators = ("knn", "clustering", "assignment")
  config.update(common.logging(checkpoint_every_epochs=3))
  if common.is_quick(variant):
    common.shorten(config, num_epochs=3)
    config.model.name, config.model.width = "resnet18", 16
  return config
