"""What every room may use: devices, pictures, random numbers. Knows nothing above it."""
