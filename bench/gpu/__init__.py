"""`bench gpu`: what is left of an engine's speed behind API, broker and tree."""
