"""The openai engine, and what it knows of servers: request bodies, refusals, events, quirks."""
