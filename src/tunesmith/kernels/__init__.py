"""What makes it fast, each beside a plain reference that it is tested against."""
