"""What runs a job: one small protocol and a table of engines, each a sibling file."""
