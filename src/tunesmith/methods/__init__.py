"""Methods: which parameters train."""
