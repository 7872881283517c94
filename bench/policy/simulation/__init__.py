"""The simulator: see `simulate.py`. Pure: simulated time only, random numbers from a seed."""
