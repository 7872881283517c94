"""What the `openai` engine knows of the servers behind it: their bodies, refusals, events and quirks."""
