"""Users, sessions, API keys, one-time login tokens."""
