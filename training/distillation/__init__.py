"""What a student learns from its teacher.

`task` puts a batch's losses together, as `config` says; `losses` are those of the paper and `transforms` their Fourier
transforms, `objectives` what goes beyond it and what is logged; `conditions` puts other conditions in the place of
samples' own; `initialise` takes a student's first weights from its teacher's.
"""
