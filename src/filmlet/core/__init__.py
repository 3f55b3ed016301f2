"""Plain data and arithmetic: no third-party imports."""
