"""`bench policy`: how long jobs wait under each dispatch rule, simulated, and measured on a real tree."""
