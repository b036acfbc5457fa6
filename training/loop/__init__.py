"""The training loop that every run shares, and what makes a run one that can be trusted.

`fit` trains a task; `config` says how long and how, `optimizer` with what; `randomness` gives every sample its own
random numbers; `ema` averages the weights, `guard` skips steps that are no numbers, `progress` writes the statistics;
`snapshots` are the checkpoints, `stopping` makes one when a signal comes, and `folder` is what a run says of itself.
"""
