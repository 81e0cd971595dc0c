"""Variables and flags -> which process this is. No process is started."""

import pytest

from odc_jax.distributed.launchers import Launch, find, share_gpus
from odc_jax.errors import UserError

# What srun gives to task 5 of 8, on the second of two nodes.
SRUN = {
  "SLURM_JOB_ID": "4100",
  "SLURM_NTASKS": "8",
  "SLURM_STEP_NUM_TASKS": "8",
  "SLURM_STEP_NODELIST": "node[001-002]",
  "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
  "SLURM_NODEID": "1",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1",
}
# The same, one task on each node.
SRUN_PER_NODE = SRUN | {
  "SLURM_NTASKS": "2",
  "SLURM_STEP_NUM_TASKS": "2",
  "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
}
# What Open MPI 4.1.4 gives; recorded but for the numbers.
MPIRUN = {
  "OMPI_COMM_WORLD_SIZE": "8",
  "OMPI_COMM_WORLD_RANK": "5",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_MCA_orte_hnp_uri": "708247552.0;tcp://192.0.2.2,10.0.0.1:53171;"
  "tcp6://[fd00::2]:45231",
}


def test_nothing_said_is_left_to_jax():
  assert find({}, num_gpus=8) == Launch("JAX")


def test_flags_come_before_every_launcher():
  flags = {"coordinator": "a:1", "num_processes": 3, "process_id": 2}
  for environ in ({}, SRUN, MPIRUN):
    assert find(environ, **flags) == Launch("flags", 3, 2, "a:1")
    alone = find(environ, num_processes=1, num_gpus=4)
    assert alone == Launch("alone", 1, 0)


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ({"process_id": 1}, "--num_processes"),
    ({"num_processes": 2}, "--process_id"),
    ({"num_processes": 2, "process_id": 0}, "--coordinator"),
    ({"coordinator": "a:1"}, "--num_processes and --process_id"),
    ({"coordinator": "a:1", "process_id": 0}, "without --num_processes"),
    ({"num_processes": 2, "process_id": 2}, "from 0 to 1"),
    ({"num_processes": 2, "process_id": -1}, "from 0 to 1"),
    ({"num_processes": 1, "process_id": 1}, "from 0 to 0"),
    ({"num_processes": 0}, "at least one"),
    ({"coordinator": "node1"}, "--coordinator=node1 is not HOST:PORT"),
    ({"coordinator": "node1:x"}, "--coordinator=node1:x is not HOST:PORT"),
    ({"coordinator": ":80"}, "--coordinator=:80 is not HOST:PORT"),
    ({"coordinator": "node1:70000"}, "is not HOST:PORT"),
  ],
)
def test_flags_in_part_or_in_contradiction_are_refused(flags, words):
  with pytest.raises(UserError, match=words):
    find({}, **flags)


def test_slurm_one_process_per_gpu():
  launch = find(SRUN, num_gpus=4)
  # 61440 + 4100 % 4096, as JAX chooses the port.
  assert launch == Launch("SLURM", 8, 5, "node001:61444", (1,))


def test_slurm_one_process_per_node_has_all_gpus():
  launch = find(SRUN_PER_NODE, num_gpus=4)
  assert launch == Launch("SLURM", 2, 1, "node001:61444", None)


def test_slurm_where_each_task_sees_its_own_gpu_only():
  """--gpus-per-task=1: the task's GPU is number 0, whatever its local id."""
  environ = SRUN | {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4"}
  assert find(environ, num_gpus=1).local_device_ids is None


@pytest.mark.parametrize(
  ("nodes", "host"),
  [
    ("localhost", "localhost"),
    ("node001,host2", "node001"),
    ("node[001-015],host2", "node001"),
    ("node[001,007-015],host2", "node001"),
    ("rack[1-2]node[01-04]", "rack1node01"),
    ("gpu[3]-ib", "gpu3-ib"),
  ],
)
def test_slurm_first_host(nodes, host):
  launch = find(SRUN | {"SLURM_STEP_NODELIST": nodes})
  assert launch.coordinator == f"{host}:61444"


def test_the_port_and_the_address_can_be_chosen_under_a_launcher():
  environ = SRUN | {"JAX_COORDINATOR_PORT": "9"}
  assert find(environ).coordinator == "node001:9"
  launch = find(environ, coordinator="node001-ib:7", num_gpus=4)
  assert launch == Launch("SLURM", 8, 5, "node001-ib:7", (1,))


@pytest.mark.parametrize(
  ("tasks", "node", "local", "gpus"),
  [("4(x2),3", 1, 3, (3,)), ("4,1(x3)", 2, 0, None), ("2(x2),4", 0, 1, (2, 3))],
)
def test_slurm_tasks_of_this_node(tasks, node, local, gpus):
  environ = SRUN | {
    "SLURM_STEP_TASKS_PER_NODE": tasks,
    "SLURM_NODEID": str(node),
    "SLURM_LOCALID": str(local),
  }
  assert find(environ, num_gpus=4).local_device_ids == gpus


BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
  "environ",
  [
    {"SLURM_JOB_ID": "7"},  # ssh into an allocation
    BATCH_SCRIPT | {"SLURM_JOB_NUM_NODES": "1"},
    BATCH_SCRIPT | {"SLURM_NTASKS": "1"},
    # srun --pty bash, or an editor's server started by it
    SRUN | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
    # Left over from something else: no job.
    {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"},
  ],
)
def test_slurm_with_one_task_runs_alone(environ):
  launch = find(environ, num_gpus=8)
  assert launch.num_processes == (1 if "SLURM_JOB_ID" in environ else None)
  assert launch.local_device_ids is None


@pytest.mark.parametrize(
  "environ",
  [
    BATCH_SCRIPT | {"SLURM_NTASKS": "8"},  # sbatch without srun
    BATCH_SCRIPT | {"SLURM_JOB_NUM_NODES": "8"},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},  # salloc
    SRUN | {"SLURM_STEP_NUM_TASKS": "1"},  # salloc as an interactive step
  ],
)
def test_slurm_with_tasks_that_srun_did_not_start_is_refused(environ):
  with pytest.raises(UserError, match=r"8 tasks, but srun.*--num_processes=1"):
    find(environ)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"SLURM_PROCID": "8"}, "SLURM_PROCID=8.*another step"),
    ({"SLURM_PROCID": "one"}, "SLURM_PROCID is 'one', not a number"),
    ({"SLURM_NODEID": "2"}, "tasks of node 2"),
    ({"SLURM_STEP_TASKS_PER_NODE": ""}, "SLURM_STEP_TASKS_PER_NODE"),
    ({"SLURM_LOCALID": "4"}, "local process 4 of 4"),
  ],
)
def test_slurm_variables_that_contradict_each_other(change, words):
  with pytest.raises(UserError, match=words):
    find(SRUN | change, num_gpus=4)


def test_open_mpi_one_process_per_gpu_and_one_per_node():
  # 61440 + 708247552 // 4096 % 4096
  assert find(MPIRUN, num_gpus=4) == Launch(
    "Open MPI", 8, 5, "192.0.2.2:62320", (1,)
  )
  per_node = {
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
  }
  assert find(MPIRUN | per_node, num_gpus=4).local_device_ids is None
  assert find({"OMPI_COMM_WORLD_SIZE": "1"}) == Launch("alone", 1, 0)


def test_open_mpi_inside_a_slurm_job():
  """The batch script's own variables are half-set; mpirun's count."""
  environ = BATCH_SCRIPT | {"SLURM_NTASKS": "8"} | MPIRUN
  assert find(environ, num_gpus=4).found == "Open MPI"


def test_open_mpi_by_ipv6():
  uri = "8192.0;tcp6://[fd00::2,fd00::3]:45231"
  launch = find(MPIRUN | {"OMPI_MCA_orte_hnp_uri": uri})
  assert launch.coordinator == "[fd00::2]:61442"


def test_open_mpi_5_names_no_host():
  """One machine needs none; JAX would run every process alone."""
  environ = MPIRUN | {"PMIX_NAMESPACE": "prterun-host1-24680@1"}
  del environ["OMPI_MCA_orte_hnp_uri"]
  with pytest.raises(UserError, match=r"--coordinator=HOST:PORT"):
    find(environ)
  launch = find(environ, coordinator="host1:7", num_gpus=4)
  assert launch == Launch("Open MPI", 8, 5, "host1:7", (1,))
  launch = find(environ | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8"})
  # 61440 + (1 + 24680 + 1) % 4096
  assert launch.coordinator == "localhost:61546"


def test_another_mpi_is_refused():
  with pytest.raises(UserError, match=r"PMI_SIZE=4.*--process_id=\$PMI_RANK"):
    find({"PMI_SIZE": "4", "PMI_RANK": "1"})


ON_NODE = "SLURM_GPUS_ON_NODE"


@pytest.mark.parametrize(
  ("environ", "num_gpus", "num_local", "local_id", "expected"),
  [
    # One process on the node: all, where JAX takes number 0.
    ({ON_NODE: "8"}, 8, 1, 0, None),
    ({}, 1, 1, 0, None),
    # No GPU.
    ({}, 0, 4, 3, None),
    # One each, all of them visible to everyone.
    ({ON_NODE: "4"}, 4, 4, 3, (3,)),
    ({}, 4, 4, 0, (0,)),
    ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 4, 4, 2, (2,)),
    # Two each.
    ({ON_NODE: "8"}, 8, 4, 3, (6, 7)),
    # Only their own visible: JAX takes a number that is not there.
    ({ON_NODE: "4", "CUDA_VISIBLE_DEVICES": "0"}, 1, 4, 3, None),
    ({ON_NODE: "8", "CUDA_VISIBLE_DEVICES": "0,1"}, 2, 4, 3, None),
    ({"CUDA_VISIBLE_DEVICES": "3"}, 1, 4, 3, None),
    # Said by hand, in JAX's own variable.
    ({"JAX_LOCAL_DEVICE_IDS": "0,2", ON_NODE: "4"}, 4, 3, 1, None),
  ],
)
def test_gpus_of_a_process(environ, num_gpus, num_local, local_id, expected):
  assert share_gpus(environ, num_gpus, num_local, local_id) == expected


@pytest.mark.parametrize(
  ("environ", "num_gpus", "num_local"),
  [
    ({ON_NODE: "8"}, 8, 3),
    ({ON_NODE: "2"}, 2, 4),
    ({}, 1, 2),
    # --gpu-bind=closest: two tasks see the same two.
    ({ON_NODE: "4", "CUDA_VISIBLE_DEVICES": "0,1"}, 2, 4),
  ],
)
def test_gpus_that_cannot_be_shared_out(environ, num_gpus, num_local):
  with pytest.raises(UserError, match=f"sees {num_gpus}; start one process"):
    share_gpus(environ, num_gpus, num_local, 0)
