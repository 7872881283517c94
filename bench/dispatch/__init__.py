"""`bench dispatch`: jobs a second and latency through the tree, beside bare AMQP and other queues."""
