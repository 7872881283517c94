"""A host's agent: starts and stops nodes on request, within what the host allows."""
