"""Notifications of finished answers, through the browsers' push services (Web Push)."""
