"""What operators see and do: one package a section of the dashboard."""
