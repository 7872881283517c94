"""Models that the runner cannot compute: by the steps of the library itself, slower."""
