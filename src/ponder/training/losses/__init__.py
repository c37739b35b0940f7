"""Policy losses, one file each: a function of one record of flat tokens."""
