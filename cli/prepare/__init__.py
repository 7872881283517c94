"""What a fresh machine needs before Canopy runs. Standard library only: it runs before the environment exists."""
