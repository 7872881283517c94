"""The Django project: accounts, chat, the OpenAI-compatible API, the tree dashboard's API, health."""
