"""Quality-Diversity Generative Sampling in JAX (Chang et al., AAAI 2024, arXiv 2312.14369).

A frozen generator is sampled evenly over measures that its user names in words. The modules are the
stages, in this order; each is useful alone:

    config          what a run is
    folders         whose a folder is, and how it is resumed
    provenance      models, device, versions
    models          ports of generators and encoders, and safe readers of their checkpoints
    generators      key -> latents;  latents -> images
    encoders        images, text -> embeddings
    prompts         prompt pairs -> prompt embeddings
    image_measures  what a measure can name in place of prompts
    typicality      quality where no prompt describes it
    jacobian        a score and all its gradients
    scoring         latents -> objective and measures, with or without their Jacobian
    archive         cells, and the best latent found for each
    emitters        what to try next
    search          init, step, run: the whole loop as pure functions
    problem         a config made concrete
    runs            a run's folder: metrics, checkpoints, pictures
    dataset         a run's elites -> a balanced dataset on disk
    classifier      images and labels -> a trained classifier -> classes of other images
    fairness        how often it is right about each group, and how far groups are apart
    repair          biased classifiers, before and after: the experiment, or anybody's folders
"""
