"""/v1/batches: many requests from one file, answered in the background into another."""
