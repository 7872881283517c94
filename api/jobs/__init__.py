"""Jobs: /api/jobs has those that run now; /v1/jobs those that are stored until they end."""
