"""The line: what waits and runs, what operators do with a job, and a model's intake."""
