"""Plans: what a user may ask for in a time, and at once; counted by all API processes together."""
