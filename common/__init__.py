"""What both halves share: configuration, protocol, models, data."""
