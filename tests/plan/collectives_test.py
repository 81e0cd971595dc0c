import jax
import jax.numpy as jnp
import pytest

from odc_jax import mesh as mesh_lib
from odc_jax.plan import collectives


def test_synchronous_asynchronous_and_tuples():
  text = """
  %all-reduce.3 = f32[10,4]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
  %a = (f32[3,5]{1,0:T(8,128)}, /*index=1*/s32[3]{0}) all-reduce(%p, %q)
  %s = (f32[1,2]{1,0}, f32[8,2]{1,0}) all-gather-start(%p), dimensions={0}
  %d = f32[8,2]{1,0} all-gather-done(%s)
  %t = ((f32[2], s8[2]), (bf16[16], s8[16])) all-gather-start(%p, %q)
  %r = (f32[7], f32[]) all-reduce-start(%p, %q), to_apply=%add
  ROOT %c = (pred[6]{0}, pred[6]{0}, u32[], u32[]) collective-permute-start(%p)
  %f = f32[9] fusion(%all-reduce.3), metadata={op_name="a = b all-reduce(c)"}
  """
  assert collectives.collectives(text) == [
    ("all-reduce", "f32[10,4]", 160),
    ("all-reduce", "(f32[3,5], s32[3])", 72),
    ("all-gather", "f32[8,2]", 64),
    ("all-gather", "(bf16[16], s8[16])", 48),
    ("all-reduce", "(f32[7], f32[])", 32),
    ("collective-permute", "pred[6]", 6),
  ]


def test_an_asynchronous_one_on_a_tpu_counts_once():
  """It stands at its start, where it overlaps, and at its end."""
  line = (
    "  %g.{0} = f32[8,2] all-gather(%p), channel_id={1}, dimensions={{0}}, "
    'backend_config={{"async_collective_fusion_config":{{}}}}'
  )
  text = "\n".join(
    line.format(*pair) for pair in [(1, 7), (2, 7), (3, 8), (4, 7)]
  )
  assert collectives.collectives(text) == [("all-gather", "f32[8,2]", 64)] * 2


@pytest.mark.optimized
def test_a_compiled_gather():
  mesh = mesh_lib.make_mesh(8)
  with jax.set_mesh(mesh):
    x = jax.device_put(jnp.zeros((16, 3)), mesh_lib.rows(mesh))
    gather = jax.jit(lambda x: x, out_shardings=mesh_lib.replicated(mesh))
    text = gather.lower(x).compile().as_text()
  assert collectives.collectives(text) == [("all-gather", "f32[16,3]", 192)]
