"""`bench fair`: what a user notices of another one who floods the service."""
