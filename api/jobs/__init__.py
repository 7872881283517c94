"""The jobs whose answers this process reads: looked at, cancelled, ended at their deadline."""
