"""The audit log: who did what to the tree and its jobs, and who looked at prompts."""
