"""Conversations: stored messages, and answers that live on without their readers."""
