"""One file a paper: its miniature, the method against its baselines.

A study is a module with

    VECTORISED: bool                                  whether `run` is one traceable JAX function, vmapped over seeds
    run(config, key) -> {metric: scalar}              one arm, one seed

and where arms have something in common that is worth computing once (pretrained parameters, a teacher),

    prepare(config, key) -> nested dict of arrays     of `config.shared` alone
    run(config, key, shared) -> {metric: scalar}      shared: what `prepare` gave for the same seed

`config` holds the settings of the paper's config with those of the arm over them. All arms get the same key for one seed:
they see the same data and the same initial parameters, and are compared in pairs.
"""
