"""What is owed at a step, read off a table."""

import pytest

from odc_jax.training.due import Due, Schedule

# Ten epochs of four steps, the last one cut short after two.
SCHEDULE = Schedule(
  num_steps=38,
  steps_per_epoch=4,
  evaluate_every=3,
  save_every=2,
  has_labels=True,
)
SIZES = {"cluster/min_size", "cluster/nmi_previous"}


def words(due: Due) -> set[str]:
  return {name for name, owed in due._asdict().items() if owed}


@pytest.mark.parametrize(
  ("step", "owed"),
  [
    # Before the first step: the network as it starts, and its checkpoint.
    (0, {"features", "scores", "save"}),
    (1, set()),
    (4, {"sizes"}),
    (8, {"sizes", "save"}),
    (12, {"sizes", "features", "scores"}),
    (24, {"sizes", "features", "scores", "save"}),
    # The end comes within an epoch: its sizes would be of half of one.
    (38, {"features", "scores", "save", "last"}),
  ],
)
def test_what_is_owed(step, owed):
  assert words(SCHEDULE.before(step)) == owed


def test_what_is_logged_is_not_owed_again():
  assert words(SCHEDULE.before(24, {"eval/knn_top1"})) == {"sizes", "save"}
  assert words(SCHEDULE.before(24, SIZES)) == {"features", "scores", "save"}
  # The features are the result, though their scores are known.
  assert words(SCHEDULE.before(38, {"eval/knn_top1"})) == {
    "features",
    "save",
    "last",
  }


def test_a_signal_saves_and_does_not_evaluate():
  assert words(SCHEDULE.before(5, stopping=True)) == {"save"}
  assert words(SCHEDULE.before(12, stopping=True)) == {"sizes", "save"}
  assert words(SCHEDULE.before(38, stopping=True)) == {"save", "last"}


def test_without_labels_there_is_one_pass_at_the_end():
  schedule = Schedule(8, 4, 1, 1, has_labels=False)
  passes = [step for step in range(9) if schedule.before(step).features]
  assert passes == [8]
  assert not schedule.before(8).scores


def test_without_training_the_first_clustering_is_logged():
  schedule = Schedule(0, 4, 1, 1, has_labels=True)
  everything = {"sizes", "features", "scores", "save", "last"}
  assert words(schedule.before(0)) == everything
  assert "sizes" not in words(schedule.before(0, {"cluster/min_size"}))
