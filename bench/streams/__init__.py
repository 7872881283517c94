"""`bench http`: many server-sent event streams at a fixed token rate, and how far each falls behind its schedule."""
