"""Base classes of stored rows, and database errors that are outages."""
