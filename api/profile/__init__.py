"""A person's own account: password, keys, sessions, use, and its end."""
