"""Which tokens run next."""
