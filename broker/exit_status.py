"""How a node's process ends: `worker` exits so, and `cli` reads it."""

REMOVED = 4  # an operator removed the node from the tree: do not start it again
