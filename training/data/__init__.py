"""What a run learns from: folders of images, tar shards, streams of shards, cached latents, and batches of them.

`dataset` opens what a `DataConfig` names, and `batches` gives endless batches of it; `order` decides which samples they
hold; `images` and `pictures` turn bytes into pixels; `records`, `shards`, `tar` and `streams` know where the bytes lie;
`latents` and `text` keep what frozen networks make of them; `corrupt` counts what cannot be read.
"""
