"""`bench engine`: the speed of an engine alone, beside what transformers does by itself and what the memory allows.

The engine runs in this process, driven through its protocol (`worker.engines.base`): no broker, no node, no HTTP.
`python -m bench.engine` is the same command where nothing but torch, transformers and a few small packages is there.
"""
