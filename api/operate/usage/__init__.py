"""Use by day, user, key and model, for as long as anybody may be asked to pay for it."""
