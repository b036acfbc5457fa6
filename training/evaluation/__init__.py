"""How good images are: what `evaluate` and `ablate` make and measure.

`config` says how; `reference` gives the images of the data, and `samples` those of a model, which it keeps in a folder;
`features` are the networks that look at both, `distances` compares what they saw, and `measures` puts the scores
together; `facts` says what was measured, and `report` shows it on a page, of which `html` is the frame. `table5` is the
paper's ablation beside ours, `seeds` the same of several trainings, `first_stage` what a perfect student would come to,
and `ablation` the page of it.
"""
