"""Which processes there are: what variables and flags say. Pure."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from odc_jax.errors import UserError


class Launch(NamedTuple):
  """The processes of a launch, as known before JAX starts.

  Attributes:
    found: By what they were found, in words.
    num_processes: How many there are; None where JAX has to find out.
    process_id: Which of them this is.
    coordinator: host:port at which process 0 listens; None if it is alone.
    local_device_ids: The GPUs of this process, counted among those that it
      sees; None for all.
  """

  found: str
  num_processes: int | None = None
  process_id: int | None = None
  coordinator: str | None = None
  local_device_ids: tuple[int, ...] | None = None


def find(
  environ: Mapping[str, str],
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  num_gpus: int = 0,
) -> Launch:
  """Finds out how many processes there are and which of them this is.

  Flags come first, then Open MPI, then SLURM; TPU pods and Kubernetes are left
  to JAX. Under Open MPI and SLURM `coordinator` alone replaces the address
  that they would give.

  Args:
    environ: The environment variables.
    coordinator: The flag: host:port.
    num_processes: The flag; 1 runs alone whatever the environment says.
    process_id: The flag.
    num_gpus: How many GPUs this process sees, see `platforms.count_gpus`.

  Returns:
    The launch; `num_processes` is None if neither flags nor variables tell.

  Raises:
    UserError: Flags that contradict each other or are given in part; half-set
      or contradicting variables; GPUs that cannot be shared out.
  """
  if coordinator is not None:
    split_address(coordinator, "--coordinator")
  if num_processes is not None or process_id is not None:
    return _from_flags(coordinator, num_processes, process_id)
  if "OMPI_COMM_WORLD_SIZE" in environ:
    return _from_open_mpi(environ, coordinator, num_gpus)
  if "SLURM_JOB_ID" in environ:
    return _from_slurm(environ, coordinator, num_gpus)
  if coordinator is not None:
    raise UserError(
      f"--coordinator={coordinator} without --num_processes and --process_id; "
      "give all three, or start the processes with srun or mpirun"
    )
  if _number(environ, "PMI_SIZE", 1) > 1:
    # MPICH and Intel MPI: nothing in their variables names a host.
    raise UserError(
      f"started as one of PMI_SIZE={environ['PMI_SIZE']} by an MPI other than "
      "Open MPI; give --coordinator=HOST:PORT --num_processes=$PMI_SIZE "
      "--process_id=$PMI_RANK"
    )
  return Launch("JAX")


def _from_flags(coordinator, num_processes, process_id) -> Launch:
  given = f"--num_processes={num_processes}, --process_id={process_id}"
  if num_processes is None:
    raise UserError(
      f"--process_id={process_id} without --num_processes; give both, and "
      "--coordinator=HOST:PORT"
    )
  if num_processes < 1:
    raise UserError(f"--num_processes={num_processes}: there is at least one")
  if process_id is not None and not 0 <= process_id < num_processes:
    raise UserError(f"{given}: process ids run from 0 to {num_processes - 1}")
  if num_processes == 1:
    return Launch("alone", 1, 0)
  if process_id is None:
    raise UserError(
      f"--num_processes={num_processes} without --process_id; give each "
      f"process its own, 0 to {num_processes - 1}"
    )
  if coordinator is None:
    raise UserError(
      f"{given} without --coordinator; give every process the same HOST:PORT, "
      "a free port on the machine of process 0"
    )
  return Launch("flags", num_processes, process_id, coordinator)


def _from_open_mpi(environ, coordinator, num_gpus) -> Launch:
  num_processes = _number(environ, "OMPI_COMM_WORLD_SIZE")
  if num_processes == 1:
    return Launch("alone", 1, 0)
  process_id = _number(environ, "OMPI_COMM_WORLD_RANK")
  local_id = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
  num_local = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
  if coordinator is None:
    # "708247552.0;tcp://192.0.2.2,10.0.0.1:53171;tcp6://[fd00::2]:45231": the
    # number of the job, and where mpirun itself listens.
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp://(.+?)[,:]|tcp6://(\[.+?)[,\]]", uri)
    job = int((re.match(r"\d+", uri) or "0")[0]) // 4096
    if host is not None:
      host = host[1] or host[2] + "]"
    elif num_local == num_processes:
      # Open MPI 5 has no such variable, and here it needs none. Its job is
      # named "prterun-HOST-PID@1".
      host = "localhost"
      numbers = re.findall(r"\d+", environ.get("PMIX_NAMESPACE", ""))
      job = sum(map(int, numbers))
    else:
      raise UserError(
        "this Open MPI does not tell where mpirun was started "
        "(OMPI_MCA_orte_hnp_uri is missing); add --coordinator=HOST:PORT, a "
        "free port on the machine of rank 0"
      )
    coordinator = f"{host}:{_port(environ, job)}"
  return Launch(
    "Open MPI",
    num_processes,
    process_id,
    coordinator,
    share_gpus(environ, num_gpus, num_local, local_id),
  )


def _from_slurm(environ, coordinator, num_gpus) -> Launch:
  job = environ["SLURM_JOB_ID"]
  asked = _number(
    environ, "SLURM_NTASKS", _number(environ, "SLURM_JOB_NUM_NODES", 1)
  )
  step = ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
  by_srun = all(name in environ for name in step)
  num_processes = (
    _number(environ, "SLURM_STEP_NUM_TASKS", asked) if by_srun else 1
  )
  if num_processes == 1:
    # A batch script, an ssh session, a terminal of an editor, or the shell of
    # salloc: that one is a step of a single task, but keeps the job's number.
    if asked > 1:
      raise UserError(
        f"SLURM job {job} has {asked} tasks, but srun did not start this "
        "process as one of them; put srun before python, or add "
        "--num_processes=1 to run alone"
      )
    return Launch("alone", 1, 0)
  process_id = _number(environ, "SLURM_PROCID")
  local_id = _number(environ, "SLURM_LOCALID")
  if process_id >= num_processes:
    raise UserError(
      f"SLURM_PROCID={process_id}, but the step has {num_processes} tasks: "
      "these variables are another step's; start with srun, or add "
      "--num_processes=1 to run alone"
    )
  if coordinator is None:
    host = _first_host(environ["SLURM_STEP_NODELIST"])
    coordinator = f"{host}:{_port(environ, _number(environ, 'SLURM_JOB_ID'))}"
  return Launch(
    "SLURM",
    num_processes,
    process_id,
    coordinator,
    share_gpus(environ, num_gpus, _tasks_on_node(environ), local_id),
  )


def share_gpus(
  environ: Mapping[str, str], num_gpus: int, num_local: int, local_id: int
) -> tuple[int, ...] | None:
  """Says which GPUs belong to this process.

  JAX gives a process that SLURM or Open MPI started the one GPU whose number is
  its local id. That is wrong with one process per node, which should have all,
  and where each process sees only its own (`--gpus-per-task`, `--gpu-bind`),
  which then have the numbers 0, 1, ... in every process. The rule here:

  | processes on the node | a process sees           | its GPUs          |
  |-----------------------|--------------------------|-------------------|
  | 1                     | any number               | all it sees       |
  | t                     | no GPU                   | (none)            |
  | t                     | at most 1/t of the node's | all it sees      |
  | t                     | all g, g divisible by t  | its g/t in a row  |
  | t                     | anything else            | refused           |

  JAX_LOCAL_DEVICE_IDS, which JAX reads, comes before all that.

  Args:
    environ: The environment variables.
    num_gpus: How many GPUs this process sees.
    num_local: How many of the processes run on this node.
    local_id: Which of those this is.

  Returns:
    The GPUs' numbers among those that this process sees; None for all.

  Raises:
    UserError: If the GPUs cannot be shared out.
  """
  if environ.get("JAX_LOCAL_DEVICE_IDS"):
    return None
  if num_local == 1 or num_gpus == 0:
    return None
  if local_id >= num_local:
    raise UserError(
      f"local process {local_id} of {num_local} on this node: the variables "
      "contradict each other; say which GPUs it has with JAX_LOCAL_DEVICE_IDS"
    )
  on_node = _number(environ, "SLURM_GPUS_ON_NODE", 0)
  if on_node == 0:
    # Nobody says how many the node has. What hides some of them from a process
    # is this variable; a single one that it leaves is the process's own.
    hidden = "CUDA_VISIBLE_DEVICES" in environ
    on_node = num_local if hidden and num_gpus == 1 else num_gpus
  if num_gpus * num_local <= on_node:
    return None
  if num_gpus != on_node or num_gpus % num_local:
    raise UserError(
      f"{num_local} processes on this node cannot share its {on_node} GPUs, of "
      f"which this one sees {num_gpus}; start one process per node "
      "(--ntasks-per-node=1) or one per GPU"
    )
  share = num_gpus // num_local
  return tuple(range(local_id * share, (local_id + 1) * share))


# ------------------------------------------------------- reading variables ---


def _number(environ, name, default: int | None = None) -> int:
  """Returns a variable's value; `default` is for one that is missing."""
  text = environ.get(name)
  if text is None and default is not None:
    return default
  if text is None or not re.fullmatch(r"\d+", text):
    value = "is not set" if text is None else f"is {text!r}, not a number"
    raise UserError(
      f"the launcher's variable {name} {value}; start with srun or mpirun, or "
      "add --num_processes=1 to run alone"
    )
  return int(text)


def _port(environ, job: int) -> int:
  """Returns a port that every process of the job arrives at by itself."""
  # As JAX does, and with the same variable for the case that it is taken.
  return _number(environ, "JAX_COORDINATOR_PORT", 61440 + job % 4096)


def _first_host(nodes: str) -> str:
  """rack[1-2]node[001,007-015],other -> rack1node001."""
  first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes)
  return first.split(",")[0]


def _tasks_on_node(environ) -> int:
  """Returns how many tasks of the step run on this node."""
  # 4(x2),3: four on the first two nodes, three on the third.
  text = environ.get("SLURM_STEP_TASKS_PER_NODE")
  text = text or environ.get("SLURM_TASKS_PER_NODE")
  node = _number(environ, "SLURM_NODEID", 0)
  counts = []
  for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text or ""):
    counts += [int(tasks)] * int(times or 1)
  if node >= len(counts):
    raise UserError(
      f"SLURM_STEP_TASKS_PER_NODE={text} does not tell the tasks of node "
      f"{node}; start with srun, or give --coordinator, --num_processes and "
      "--process_id"
    )
  return counts[node]


def split_address(address: str, what: str) -> tuple[str, int]:
  """Returns host and port; [::1]:8000 is allowed."""
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise UserError(f"{what}={address} is not HOST:PORT, as in node1:8476")
  return host.strip("[]"), int(port)
