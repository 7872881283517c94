"""Who asks: users, sessions, API keys, one-time login tokens."""
