"""Where labelled images come from: one module for each kind of files, whose openers find, read and check them."""
