"""One file a method: the server half."""
