"""`./canopy top`: the tree in a terminal, live, from the states that nodes publish."""
