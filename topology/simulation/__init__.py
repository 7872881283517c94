"""The parts of `topology.simulate`. Pure: simulated time only, and random numbers from a seed."""
