"""/api/jobs: the jobs whose answers this process reads."""
