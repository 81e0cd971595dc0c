"""The registry of scalars: every name that is logged, and what it means."""

import itertools
import re


def _linear() -> dict[str, str]:
  """Returns the names of linear classifiers, which say how they learned."""
  found = {}
  features = {
    "": "the pooled features",
    "stage#_": "stage #, pooled to at most 9,600 numbers",
  }
  schedules = {
    "": "",
    "_cosine": ", the rate a cosine",
    "_inverse_sqrt": ", the rate falling with the root of the steps",
  }
  views = {"": "", "_tencrop": ", ten crops of a test image"}
  epochs = {"": "the last of them", "_best": "the best of them on the test set"}
  tops = {"top1": "", "top5": ", top-5"}
  for (where, of_what), (schedule, rate), (view, crops), (epoch, which), (
    top,
    counted,
  ) in itertools.product(
    *(names.items() for names in (features, schedules, views, epochs, tops))
  ):
    found[f"eval/linear_{top}_{where}sgd#{schedule}{view}{epoch}"] = (
      f"linear layer on {of_what}, # epochs of SGD{rate}{crops}, {which}"
      f"{counted}"
    )
  return found


# Every scalar that a run can log; # stands for any number, * for the name of a
# column of the user's. Names are a contract: scripts read them. "labels" in a
# name means ground truth; the pseudo-labels are "clusters".
SCALARS = {
  "train/loss": "the loss that is minimised",
  "train/cluster_accuracy": "batch images classified as their cluster",
  "train/consistency": "minus the logarithm of how alike two views of an image "
  "are assigned",
  "train/unevenness": "how far the mean assignment of the batch is from using "
  "all prototypes alike: divergence in nats",
  "train/contrast_accuracy": "views of the batch whose most similar other view "
  "is of the same image",
  "train/center_loss": "the part of the loss that the centres learn from",
  "train/head_loss_min": "the loss of the best of the heads in this batch",
  "train/pair_weight": "how strongly the teachers believe, on average, that an "
  "image and its neighbour share a cluster",
  "train/embedding_std": "spread of the batch's embeddings over the sphere: 0 "
  "where all are the same, at most 1",
  "train/learning_rate": "of the backbone",
  "train/bad_images": "training images met so far that cannot be read",
  "cluster/label_change": "batch images whose cluster changed",
  "cluster/nmi_previous": "NMI (arithmetic) of the clusters with those of "
  "an epoch ago",
  "cluster/empty": "clusters without an image",
  "cluster/min_size": "images in the smallest cluster",
  "cluster/max_size": "images in the largest cluster",
  "cluster/entropy": "of the cluster sizes, in nats; at most ln K",
  "cluster/dissolved": "small clusters dissolved in this step",
  "cluster/dissolved_epoch": "small clusters dissolved since the epoch began",
  "cluster/transport_iterations": "Sinkhorn-Knopp iterations of the last solve",
  "eval/knn_top1": "kNN top-1 on frozen backbone features, with eval.knn.k "
  "neighbours and eval.knn.temperature",
  "eval/knn_top1_k#": "kNN top-1 on frozen backbone features, with # "
  "neighbours and the published temperature of 0.07",
  "eval/nmi_labels": "NMI (arithmetic) of the clusters with the labels",
  "eval/nmi_geometric_labels": "NMI (geometric) of the clusters with the "
  "labels",
  "eval/ami_labels": "adjusted mutual information of the clusters with the "
  "labels",
  "eval/ari_labels": "adjusted Rand index of the clusters with the labels",
  "eval/purity_labels": "images that have their cluster's majority label",
  "eval/acc_labels": "images whose label is the one matched to their cluster, "
  "one to one; only where there are as many clusters as labels",
  "eval/mof_labels": "frames whose label is the one matched to their cluster, "
  "one to one over all sequences; without background",
  "eval/miou_labels": "likewise, intersection over union, a mean over labels",
  "eval/f1_majority_labels": "likewise, F1 of segments, found where most of "
  "the frames drawn are right (ASOT)",
  "eval/mof_sequence_labels": "frames that are right, matched in each "
  "sequence on its own, a mean over sequences; without background",
  "eval/miou_sequence_labels": "likewise, intersection over union",
  "eval/f1_majority_sequence_labels": "likewise, F1 of segments",
  "eval/f1_share_labels": "F1 of segments, which count by the share of the "
  "frames drawn that are right (CTE, TOT); matched over all sequences",
  "eval/mof_background_labels": "frames that are right, matched as CTE does "
  "it, of all frames: background too",
  "eval/miou_background_labels": "likewise, intersection over union",
  "eval/train_acc_assigned": "accuracy, one to one, of the training images' "
  "clusters in evaluation mode",
  "eval/train_nmi_assigned": "NMI (arithmetic) of the training images' "
  "clusters in evaluation mode with the labels",
  "eval/train_ari_assigned": "adjusted Rand index of the training images' "
  "clusters in evaluation mode with the labels",
  "eval/test_acc_assigned": "accuracy, one to one, of the test images' "
  "clusters in evaluation mode",
  "eval/test_nmi_assigned": "NMI (arithmetic) of the test images' "
  "clusters in evaluation mode with the labels",
  "eval/test_ari_assigned": "adjusted Rand index of the test images' "
  "clusters in evaluation mode with the labels",
  "eval/kmeans_acc_labels": "accuracy, one to one, of k-means on the features, "
  "with as many clusters as labels",
  "eval/kmeans_nmi_labels": "NMI (arithmetic) of k-means on the features "
  "with the labels",
  "eval/kmeans_nmi_geometric_labels": "NMI (geometric) of k-means on the "
  "features with the labels",
  "eval/kmeans_ami_labels": "adjusted mutual information of k-means on the "
  "features with the labels",
  "eval/kmeans_ari_labels": "adjusted Rand index of k-means on the features "
  "with the labels",
  "eval/reverse_information_*": "nats that * tells of the clusters of images "
  "that the probe has not learnt from",
  "eval/reverse_share_*": "share of the clusters' entropy that * tells, of "
  "images that the probe has not learnt from",
  "eval/reverse_top1_all": "images whose cluster is the likeliest by label and "
  "attributes together",
  "eval/retrieval_recall_at#": "test images that have one of their label among "
  "the # most similar training images",
  "eval/retrieval_map": "mean average precision over all training images, "
  "ranked by similarity to a test image",
  "eval/retrieval_map_#q": "mean average precision over all training images, "
  "ranked by similarity to one of # test images",
  "eval/linear_top1_lbfgs": "logistic regression on the pooled features",
  "eval/linear_top5_lbfgs": "logistic regression on the pooled features, top-5",
  **_linear(),
  **{
    f"eval/semi_#pct_{top}_best_of_#{epoch}": "all weights fine-tuned with # % "
    f"of the labels, the best on the test set of # settings{in_words}"
    f"{', top-5' * (top == 'top5')}"
    for top in ("top1", "top5")
    for epoch, in_words in (("", ""), ("_best_epoch", " and all their epochs"))
  },
  "eval/svm_map_cv3": "linear SVMs on the last stage, mean average precision, "
  "costs chosen by cross-validation",
  "eval/low_shot_map_k#_best_c": "linear SVMs from # images of a class, mean "
  "average precision, the best cost on the test set",
  "verdict/nmi_colors": "NMI (arithmetic) of the clusters with k-means on the "
  "images' mean colours",
  "verdict/nmi_pixels": "NMI (arithmetic) of the clusters with k-means on "
  "32 x 32 pixels",
  "verdict/ami_colors": "the former, adjusted for chance",
  "verdict/ami_pixels": "the latter, adjusted for chance",
  "verdict/neighbors_colors": "of the ten nearest images by the features, "
  "those that are among the ten nearest by mean colour",
  "verdict/neighbors_pixels": "likewise by 32 x 32 pixels",
  "verdict/silhouette": "of the clusters, by the first 16 principal components "
  "of the features",
  "verdict/largest": "images in the largest cluster",
  "verdict/elsewhere": "images nearer to another cluster than to their own",
  "verdict/heads_agreement": "heads that agree on an image's cluster, a mean "
  "over the images",
  "speed/images_per_second": "since the last log line",
  "speed/step_ms": "milliseconds per step, since the last log line",
  "speed/data_wait": "fraction of the time in which the devices had nothing to "
  "do because the next batch was not there",
}


def declared(name: str) -> str | None:
  """Returns what a scalar's name means, or None where it is not declared."""
  for pattern, text in SCALARS.items():
    form = pattern.replace("#", r"(\d+)").replace("*", r"([\w-]+)")
    if found := re.fullmatch(form, name):
      for part in found.groups():
        text = re.sub(r"[#*]", part, text, count=1)
      return text
  return None
