"""The instance's data as a whole: backup, restore, and the move to another database."""
