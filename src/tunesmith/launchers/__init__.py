"""Launchers: on how many processes and machines a training runs."""
