import type { Tree, TreeNode, TreePatch } from "../lib/types";

/** The tree after a patch. Nodes that did not change stay the same objects. Pure. */
export function patched(tree: Tree, patch: TreePatch): Tree {
  const known = new Map(tree.nodes.map((node) => [node.name, node]));
  const order = patch.order ?? [...known.keys()];
  const nodes = order.flatMap((name) => {
    const changes = patch.nodes?.[name];
    const node = known.get(name);
    if (!changes) return node ?? [];
    return { ...node, ...changes } as TreeNode;
  });
  return { roots: patch.roots ?? tree.roots, nodes, summary: patch.summary ?? tree.summary, at: patch.at };
}

/** Whether other nodes are there, or hang elsewhere, than before. */
export function sameShape(former: Tree, latest: Tree): boolean {
  if (former.nodes.length !== latest.nodes.length || former.roots.join() !== latest.roots.join()) return false;
  return latest.nodes.every((node, index) => {
    const before = former.nodes[index];
    return before?.name === node.name && before.parent === node.parent && before.children.join() === node.children.join();
  });
}

/** Jobs that came to each node between two trees: what moved along the edge to it. */
export function arrivals(former: Tree, latest: Tree): Map<string, number> {
  const before = new Map(former.nodes.map((node) => [node.name, node]));
  const moved = new Map<string, number>();
  for (const node of latest.nodes) {
    const known = before.get(node.name);
    // Another process under the same name counts from 0.
    const count = known && known.pid === node.pid ? node.received - known.received : 0;
    if (count > 0) moved.set(node.name, count);
  }
  return moved;
}
