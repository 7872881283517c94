"""People who ask an instance all the time, and the record of what became of each request."""
