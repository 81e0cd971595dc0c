// Node i < k is cluster i; node k + r is what row r of the tree merges.
const parent = new Int32Array(2 * k).fill(-1);
(tree ?? []).forEach(([left, right], row) => {
  parent[left] = parent[right] = k + row;
});

// Returns the group of every cluster when the tree is cut into g groups.
function cut(g) {
  if (!tree || g >= k) return null;
  if (
    g === data.num_groups &&
    clusters.group?.every((group, c) => group >= 0 || !clusters.size[c])
  ) {
    return clusters.group;
  }
  const rows = k - g;
  const root = new Int32Array(k + rows);
  for (let node = k + rows - 1; node >= 0; node--) {
    root[node] =
      parent[node] >= 0 && parent[node] < k + rows ? root[parent[node]] : node;
  }
  // Numbered by size, the largest first.
  const sizes = new Map();
  for (let c = 0; c < k; c++)
    sizes.set(root[c], (sizes.get(root[c]) ?? 0) + clusters.size[c]);
  const order = [...sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const numbers = new Map(order.map(([node], i) => [node, i]));
  return Array.from({ length: k }, (_, c) => numbers.get(root[c]));
}

function leaves(node, most) {
  const found = [];
  const stack = [node];
  while (stack.length && found.length < most) {
    const at = stack.pop();
    if (at < k) found.push(at);
    else stack.push(tree[at - k][1], tree[at - k][0]);
  }
  return found;
}
