"""DeepCluster with AlexNet on ImageNet, with the published hyper-parameters.

  python run.py --config=configs/deepcluster_imagenet.py

Paper: Caron, Bojanowski, Joulin, Douze, Deep Clustering for Unsupervised
Learning of Visual Features, ECCV 2018. Values: facebookresearch/deepcluster
main.sh, main.py. The script trains for 200 epochs; the results of the paper's
table 1 take 500 (issue 32), and a Sobel filter in front.

Variants: `:vgg16` is the same script's other network. `:resnet50` and
`:resnet50_sobel` are OpenSelfSup's (configs/selfsup/deepcluster/): pooled
features without fully connected layers, 200 epochs at batch 512. Its model zoo
gives, for the one with Sobel filter, 46.92 % linear top-1 on the pooled
features, 57.71 % on the best stage, and 74.26 mAP on VOC07. This
implementation has not been run at that size yet.

ImageNet has to be prepared once, as configs/odc_imagenet.py tells.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "deepcluster"
  config.seed = 0
  config.num_clusters = 10_000
  config.num_epochs = 500
  config.batch_size = 256

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      # The order is that of `deepcluster.sampler`, unless that is "none".
      "sampling": "permutation",
      "image_size": 224,
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
      "jitter_p": 0.0,
      "brightness": 0.0,
      "contrast": 0.0,
      "saturation": 0.0,
      "hue": 0.0,
      "gray": 0.0,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.0,
      "lighting": 0.0,
      "mean": (0.485, 0.456, 0.406),
      "std": (0.229, 0.224, 0.225),
      "sobel": True,
    }
  )
  config.model = ConfigDict(
    {
      "name": "alexnet",
      "stem": "imagenet",
      "width": 64,
      "dtype": "bfloat16",
      "init": "fan_in",
      # fc6 and fc7; what comes before the last ReLU is clustered.
      "neck": "fc",
      "neck_hidden": 4096,
      "embedding_dim": 4096,
      "dropout": 0.5,
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
  config.eval = common.evaluation(split="validation", every_epochs=20)
  if not variant.startswith("resnet50"):  # that one is OpenSelfSup's
    # The published probes of AlexNet: deepcluster eval_linear.py and .sh.
    config.eval.update(
      {
        "linear_stages": common.stages(
          num_epochs=90,
          batch_size=256,
          learning_rate=0.01,
          schedule="inverse_sqrt",
          weight_decay=1e-7,
          train_crops="fixed",
          batch_norm=False,
          epoch="best",
          test_views="ten_softmax",
        )
      }
    )
  config.update(common.logging())
  if variant == "vgg16":
    config.model.name = "vgg16"
  elif variant in ("resnet50", "resnet50_sobel"):
    config.num_epochs = 200
    config.batch_size = 512
    config.augment.rotation = 2.0
    config.augment.jitter_p = 1.0
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 1.0
    config.augment.hue = 0.5
    config.augment.gray = 0.2
    config.augment.sobel = variant == "resnet50_sobel"
    config.model.name = "resnet50"
    # The pooled features are the embeddings.
    config.model.neck = "none"
    for key in "neck_hidden", "embedding_dim", "dropout":
      del config.model[key]
    # 8 GPUs with 64 images each; only matters where the loss is re-weighted.
    config.model.group_size = 64
    config.deepcluster.sampler = "openselfsup"
    config.optimizer.learning_rate = 0.1 if config.augment.sobel else 0.3
  elif common.is_quick(variant, "vgg16", "resnet50", "resnet50_sobel"):
    # 1 % of the images, and a quarter of the channels: minutes on a GPU. The
    # fully connected layers want the whole 224 pixels.
    config.data.split = "train[:1%]"
    config.model.width = 16
    config.model.neck_hidden = 512
    config.model.embedding_dim = 512
    config.deepcluster.pca_dim = 64
    config.num_clusters = 100
    common.shorten(config, num_epochs=2)
    config.batch_size = 128
    config.log_every = 10
  return config
