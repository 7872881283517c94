"""The command line: prepares a machine, starts and ends an instance, and asks a running one."""
