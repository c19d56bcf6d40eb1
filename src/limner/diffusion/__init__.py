"""The mathematics of diffusion: paths, grids, predictions, guidance, samplers, losses. Knows no network.

denoise = predictions.flow(network, path)                     # any network -> (x_t, t) -> x0
grid = grids.shifted(path, steps=28, factor=3.0)              # where to stop on the way
for step in samplers.dpmpp_2m(denoise, x, grid, noise=NoiseSource(seeds).draws(x.shape[1:])):
    ...                                                       # step.x, step.x0
"""
