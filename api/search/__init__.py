"""Full-text search in a user's conversations.

`query.py` says what is sought, `index.py` picks the database's own index (`sqlite.py`,
`postgresql.py`), `find.py` makes the results. Both indexes are kept by the database itself, so no
writer can forget them.
"""
