"""One file a method, the client half, under the same file name as its server half; `base.py` says what a method is."""
