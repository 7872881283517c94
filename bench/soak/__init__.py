"""`bench soak`: moderate load for a long time, and whether anything grows."""
