"""The training kit: build data, train teachers, distil students, look at what came out. It stands on `spectral/`."""
