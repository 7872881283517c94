"""`bench policy`: how long jobs wait under each dispatch rule, simulated, or on a real tree."""
