"""Key maps of the published networks: their tensor names and ours, one file per network."""
