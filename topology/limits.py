"""Limits of a node that the command line, the nodes and the broker's messages share."""

MAX_SLOTS = 10_000  # of one node; AMQP counts a consumer's unsettled messages in 16 bits
# of a node that joined with a token: it says itself how many it has, and gets as many jobs
MAX_JOINED_SLOTS = 1024
