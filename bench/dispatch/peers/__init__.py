"""The drivers and workers of all contenders, a small program each. Those of other job queues run in an environment of
their own (see bench/extras.py), so they import nothing of Canopy but `bench.dispatch.loop`.
"""
