"""What a run learns from: folders of images, tar shards, streams of shards, cached latents, and batches of them.

`dataset` opens what a `DataConfig` names, and `batches` gives endless batches of it; `order` decides which samples they
hold; `images` and `pictures` turn bytes into pixels; `records`, `shards`, `streams` and `pipes` know where the bytes
are; `latents`, `latents_folder`, `latents_writing`, `caching` and `contexts` keep what frozen networks make of them,
`imagining` lets a teacher make them; `notes` is what a run remembers of its data: what could not be read, and what was
counted.
"""
