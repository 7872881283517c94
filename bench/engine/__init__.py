"""`bench engine`: the speed of an engine alone, beside transformers and the memory's limit.

The engine runs in this process, driven through its protocol (`worker.engines.base`): no broker,
no node, no HTTP, unless `--system` puts those around it.
"""
