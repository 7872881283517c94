"""Read-only links to a branch of a conversation, as it was when the link was made."""
