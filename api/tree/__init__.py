"""The tree dashboard's API."""
