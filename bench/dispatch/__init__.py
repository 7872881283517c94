"""`bench dispatch`: jobs a second and latency through the tree, beside other job queues."""
