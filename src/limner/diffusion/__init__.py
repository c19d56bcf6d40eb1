"""The mathematics of diffusion: paths, grids, predictions, guidance, samplers, losses. Knows no network.

In four lines:

    denoise = predictions.flow(network, path)            # any network -> (x_t, t) -> x0
    grid = grids.shifted(path, steps=28, factor=3.0)     # where to stop on the way
    noise = NoiseSource(seeds).draws(shape)              # util/rng.py: step -> fresh noise of every picture
    steps = samplers.dpmpp_2m(denoise, x, grid, noise=noise)
"""
