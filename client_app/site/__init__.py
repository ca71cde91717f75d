"""What a site is: a simulated part of a data set, or the model and data that an operator's own YAML names."""

from client_app.site.site import GeneratedModel, Site

__all__ = ["GeneratedModel", "Site"]
