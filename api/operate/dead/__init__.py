"""Dead letters for operators: read, run again with or without changes, dropped."""
