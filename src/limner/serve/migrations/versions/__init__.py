"""Each step from one version of the tables to the next, oldest first. None is ever changed once released."""
