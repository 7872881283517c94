"""History: what was asked and how it went, by minute for a day and by hour for 90 days."""
