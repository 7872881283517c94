"""What a user notices of another one who floods the service."""
