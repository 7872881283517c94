"""Hosts: machines with an agent, on which operators start and stop nodes."""
