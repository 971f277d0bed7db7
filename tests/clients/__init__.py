"""Clients that others wrote, unmodified, against real servers; run by make test-clients."""
