"""One file a method, the server half, under the same file name as its client half; `base.py` says what a method is."""
