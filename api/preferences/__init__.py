"""How a user wants to be answered: instructions and sampling, also per conversation."""
