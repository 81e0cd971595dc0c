import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import sinkhorn
from odc_jax.plan import collectives
from tests.recordings import load


def solve(log_p, mesh, **options):
  """Solves with padding that holds nonsense; returns no padding."""
  n, k = log_p.shape
  padded = np.full((n + 8 - n % 8, k), np.nan, np.float32)
  padded[:n] = log_p
  transport = sinkhorn.optimal_transport(
    jax.device_put(padded, mesh_lib.rows(mesh)), num_examples=n, **options
  )
  np.testing.assert_array_equal(transport.assignments[n:], k)
  return transport._replace(assignments=np.asarray(transport.assignments)[:n])


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize(
  ("tolerance", "recorded"), [(0.1, ""), (0.01, "cifar_")]
)
def test_transport_follows_the_official_code(
  golden_sela_, mesh, tolerance, recorded, chunk_size
):
  trace = load(golden_sela_)
  n = trace["P"].shape[0]
  log_p = np.log(trace["P"])
  found = solve(
    log_p,
    mesh,
    power=float(trace["lamb"]),
    tolerance=tolerance,
    chunk_size=chunk_size,
  )
  np.testing.assert_array_equal(found.assignments, trace[f"{recorded}labels"])
  assert abs(found.num_iters - trace[f"{recorded}n_iter"]) <= 10
  if recorded:
    cost = -np.mean(log_p[np.arange(n), found.assignments])
    np.testing.assert_allclose(cost, trace["cifar_cost_f64"], rtol=1e-5)
    return
  r = np.exp(np.asarray(found.log_r, np.float64))
  np.testing.assert_allclose(r, trace["r_final_f64"], rtol=1e-4)
  a = trace["P"].astype(np.float64) ** trace["lamb"]
  np.testing.assert_allclose(1 / n / (a @ r), trace["c_final_f64"], rtol=1e-4)


def test_transport_by_hand(mesh):
  p = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
  p = np.log(np.stack([p, 1 - p], axis=1))
  # All prefer the first cluster; those stay that prefer it most.
  found = solve(p, mesh, power=5.0, tolerance=0.1)
  np.testing.assert_array_equal(found.assignments, [0, 0, 1, 1])
  # Without a preference the first iteration finds nothing to do:
  # r = (1 / 2) / sum_i A_ik / 4 = (1 / 2) 2^5 = 2^4.
  found = solve(
    np.log(np.full((4, 2), 0.5, np.float32)), mesh, power=5.0, tolerance=0.1
  )
  assert found.num_iters == 1
  np.testing.assert_allclose(np.exp(found.log_r), [16, 16], rtol=1e-5)


def test_transport_ends_where_float32_does(mesh):
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=(4096, 9)) + 3 * rng.normal(size=(1, 9))
  log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))
  found = solve(log_p, mesh, power=10.0, tolerance=0.0)
  assert 20 < found.num_iters < 500
  a = np.exp(10 * log_p.astype(np.float64) + np.asarray(found.log_r))
  q = a / a.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(q.sum(axis=0), 4096 / 9, rtol=1e-5)
  # Nearly all rows have one cluster.
  sizes = np.bincount(found.assignments, minlength=9)
  np.testing.assert_allclose(sizes, 4096 / 9, rtol=0.05)


def test_codes_follow_the_official_code(golden_swav_sinkhorn):
  trace = load(golden_swav_sinkhorn)
  scores = jnp.asarray(trace["scores"])
  num_cases = sum(name.startswith("q") for name in trace)
  assert num_cases
  for i in range(num_cases):
    epsilon, num_iters = float(trace[f"eps{i}"]), int(trace[f"iters{i}"])
    codes = sinkhorn.sinkhorn_codes(scores, epsilon, num_iters)
    np.testing.assert_allclose(codes, trace[f"q{i}"], atol=5e-6)
    np.testing.assert_allclose(codes.sum(axis=1), 1, rtol=1e-5)
    # A queue takes part as a longer batch would.
    half = scores.shape[0] // 2
    codes = sinkhorn.sinkhorn_codes(
      scores[half:], epsilon, num_iters, scores[:half]
    )
    np.testing.assert_allclose(codes, trace[f"q{i}"][half:], atol=5e-6)


def test_codes_by_hand():
  scores = jnp.log(jnp.array([[2.0, 1], [2, 1], [1, 1], [3, 1]]))
  # Columns have the sums 8 and 4.
  expected = [[1 / 2, 1 / 2], [1 / 2, 1 / 2], [1 / 3, 2 / 3], [3 / 5, 2 / 5]]
  codes = sinkhorn.sinkhorn_codes(scores, 1.0, 1)
  np.testing.assert_allclose(codes, expected, rtol=1e-6)
  # exp(1000) would be too much for float32.
  codes = sinkhorn.sinkhorn_codes(1000 + scores, 1.0, 100)
  np.testing.assert_allclose(codes.sum(axis=0), 2, rtol=1e-4)


@pytest.mark.optimized
@pytest.mark.parametrize("kind", ["transport", "codes"])
def test_only_sums_over_rows_move(kind):
  n, k, q = 8 * 1024, 16, 512
  mesh = mesh_lib.make_mesh(8)
  with jax.set_mesh(mesh):
    rows = jax.ShapeDtypeStruct(
      (n, k), jnp.float32, sharding=mesh_lib.rows(mesh)
    )
    if kind == "transport":
      lowered = sinkhorn.optimal_transport.lower(
        rows, power=25.0, tolerance=0.1, num_examples=n - 5
      )
    else:
      queue = jax.ShapeDtypeStruct(
        (q, k), jnp.float32, sharding=mesh_lib.replicated(mesh)
      )
      codes = jax.jit(
        lambda scores, queue: sinkhorn.sinkhorn_codes(scores, 0.05, 3, queue),
        out_shardings=mesh_lib.rows(mesh),
      )
      lowered = codes.lower(rows, queue)
    found = collectives.collectives(lowered.compile().as_text())
  assert found
  assert {op for op, _, _ in found} == {"all-reduce"}
  assert max(size for _, _, size in found) <= 4 * (k + 1)
