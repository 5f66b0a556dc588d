"""Reporters draw the events that steps emit."""
