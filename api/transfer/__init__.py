"""Conversations as files: exported as Markdown or JSON, imported from JSON.

The page converts the files of other services (frontend/src/transfer/) and sends them in parts.
"""
