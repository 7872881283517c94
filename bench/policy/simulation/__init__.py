"""The parts of `bench.policy.simulation.simulate`. Pure: simulated time only, and random numbers from a seed."""
