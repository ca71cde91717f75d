"""The client half: a site with its private model and data."""
