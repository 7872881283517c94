"""What readers think of answers: thumbs up or down, with a note."""
