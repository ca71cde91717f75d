"""A site's private package: models of three kinds and data for each, small enough for tests."""
