"""Programs that train, sample and measure with the functions of `mlfuncs`."""
