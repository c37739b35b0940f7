"""One file per strategy; the file's name is its name on the command line."""
