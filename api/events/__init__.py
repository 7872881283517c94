"""What changes in a user's conversations, as one stream of server-sent events for each tab."""
