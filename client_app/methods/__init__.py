"""One file a method: the client half."""
