"""`bench http`: many token streams at a fixed rate, and how far each falls behind its schedule."""
